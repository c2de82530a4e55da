"""Rewards from elsewhere: a function, an HTTP service, and a model that judges, all on this machine."""

import base64
import io
import json
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from chat_server import Chat, serve, texts
from layered_scene import SIDE, example
from omnialpha import config
from omnialpha.errors import InputError
from omnialpha.evaluation.judge.endpoint import Malformed
from omnialpha.tasks import TASKS
from omnialpha.training.reinforcement import judge, services
from omnialpha.training.reinforcement.judge import JudgeSettings
from omnialpha.training.reinforcement.rewards import RELEASED, Outcome, score
from omnialpha.training.reinforcement.services import Service, TextMatch
from omnialpha.training.run import ReinforcementRecipe


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that would have been made."""
    pauses: list[float] = []
    monkeypatch.setattr(services, "time", SimpleNamespace(sleep=pauses.append))
    return pauses


def outcome(task: str = "decompose_auto", group: int = 3, seed: int = 0) -> Outcome:
    """Generation g is grey of brightness g / group."""
    asked = example(task)
    layers = torch.ones(group, len(asked.targets), 4, SIDE, SIDE)
    layers[:, :, :3] = torch.arange(group)[:, None, None, None, None] / group + seed / 255
    return Outcome(asked, layers)


def picture(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


# ---- a function ------------------------------------------------------------------------------------------------------


def brightness(pictures: Tensor, prompt: str) -> Tensor:
    assert prompt == "the red disk" and pictures.shape[1:] == (3, SIDE, SIDE)
    return pictures.mean(dim=(1, 2, 3))


def no_numbers(pictures: Tensor, prompt: str) -> list[float]:
    return [0.5] * len(pictures)


def text_match(monkeypatch: pytest.MonkeyPatch, function: Any) -> Any:
    monkeypatch.setattr(services, "brightness", function, raising=False)
    return TextMatch("omnialpha.training.reinforcement.services:brightness").reward()


def test_a_function_scores_tasks_with_a_text(monkeypatch):
    row = text_match(monkeypatch, brightness)
    found = score(outcome("matting_text"), ["text"], {"text": row})["text"]
    assert found.tolist() == pytest.approx([0, 1 / 3, 2 / 3])
    assert score(outcome("decompose_auto"), ["text"], {"text": row})["text"].isnan().all()


def test_a_function_that_answers_something_else(monkeypatch):
    with pytest.raises(InputError, match="must return 3 finite numbers"):
        text_match(monkeypatch, no_numbers).measure(outcome("matting_text"))


@pytest.mark.parametrize("function", ["", "torch", "nowhere_at_all:f", "torch:no_such_function"])
def test_a_function_that_is_not_there(function):
    with pytest.raises(InputError, match="cannot be imported"):
        TextMatch(function).reward()


# ---- a service -------------------------------------------------------------------------------------------------------


class Scores(Chat):
    """A service: the brightness of each generation's first layer; or what `said` is."""

    def __init__(self, said: bytes = b"", trouble: Any = ()) -> None:
        super().__init__(str, trouble)
        self.said = said

    def answer(self, body: dict[str, Any]) -> bytes:
        found = [float(picture(layers[0])[..., :3].mean() / 255) for layers in body["layers"]]
        return self.said or json.dumps({"scores": found}).encode()


def test_a_service_gets_a_group_in_one_request_and_is_not_asked_twice():
    with serve(server := Scores()) as url:
        row = Service(url).reward()
        found = [row.measure(outcome()) for _ in range(2)]
        row.measure(outcome(seed=1))
    assert found[0].tolist() == found[1].tolist() == pytest.approx([0, 1 / 3, 2 / 3], abs=1e-6)
    assert len(server.requests) == 2
    body = server.requests[0][2]
    assert body["task"] == "decompose_auto" and body["targets"] == ["background", "foreground"]
    assert body["roles"] == ["composite"] and body["prompt"] is None and body["instruction"]
    assert [len(layers) for layers in body["layers"]] == [2, 2, 2] and len(body["truths"]) == 2
    assert picture(body["inputs"][0]).shape == (SIDE, SIDE, 4)


@pytest.mark.parametrize("trouble", [(429, b"", {}), (500, b"", {}), (503, b"", {}), (0, b"", {}), 2.0],
                         ids=["429", "500", "503", "broken", "slow"])  # fmt: skip
def test_trouble_that_passes(trouble, no_pauses):
    with serve(server := Scores(trouble=[trouble] * 2)) as url:
        found = Service(url, timeout=0.5 if trouble == 2.0 else 30).reward().measure(outcome())
    assert len(found) == 3 and len(server.requests) == 3
    assert no_pauses == [0.5, 1.0]


@pytest.mark.parametrize(("status", "tries"), [(400, 1), (404, 1), (500, 4)])
def test_trouble_that_stays(status, tries):
    server, words = Scores(trouble=[(status, b"", {})] * 9), rf"gives no scores \(status {status}\)"
    with serve(server) as url, pytest.raises(InputError, match=words):
        Service(url, tries=4).reward().measure(outcome())
    assert len(server.requests) == tries


def test_a_service_that_is_not_there():
    with serve(Scores()) as url:
        pass
    with pytest.raises(InputError, match="gives no scores .*start it, or check its address"):
        Service(url).reward().measure(outcome())


@pytest.mark.parametrize(
    "said",
    [b"<html>", b"\xff", b"[]", b"{}", b'{"scores": 1}', b'{"scores": [0, 1]}', b'{"scores": [0, 1, "1"]}',
     b'{"scores": [0, 1, 2]}', b'{"scores": [0, 1, NaN]}', b'{"scores": [0, 1, true]}', b'{"scores": [0, 1, null]}'],
)  # fmt: skip
def test_a_service_that_answers_nonsense(said):
    with serve(server := Scores(said)) as url, pytest.raises(InputError, match=r"must be .*\[3 numbers in \[0, 1\]\]"):
        Service(url).reward().measure(outcome())
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"url": "ftp://localhost/score"}, "no address of a reward service"),
        ({"url": "localhost:9000"}, "no address of a reward service"),
        ({"tries": 0}, "use more than 0 seconds and 1 try or more"),
        ({"timeout": 0.0}, "use more than 0 seconds and 1 try or more"),
        ({"categories": ("mating",)}, "the category 'mating' is not known"),
    ],
)
def test_settings_of_a_service(changes, words):
    with pytest.raises(InputError, match=words):
        Service(**{"url": "http://localhost:9000/"} | changes)


# ---- a judge ---------------------------------------------------------------------------------------------------------


def is_grid(messages: Any) -> bool:
    return any("answers follow in one picture" in text for text in texts(messages))


def verdicts(*alone: float, grid: list[float]) -> Any:
    """A judge that scores generations, known by their brightness, and the grid; in thoughts and a fence."""

    def choose(messages: Any) -> str:
        if is_grid(messages):
            return f"<think>{{hm}}</think>\n```json\n{json.dumps({'scores': grid})}\n```"
        uris = [part["image_url"]["url"] for part in messages[0]["content"] if part["type"] == "image_url"]
        level = picture(uris[-1].partition(",")[2])[judge.TOP + 9, 9, 0] / 255
        return json.dumps({"scores": [alone[round(level * len(alone))]]})

    return choose


def test_a_judge_scores_alone_and_side_by_side_and_is_not_asked_twice():
    with serve(chat := Chat(verdicts(2, 4, 6, grid=[0, 10, 5]))) as url:
        row = JudgeSettings(url, "vlm").reward()
        found = [row.measure(outcome()).tolist() for _ in range(2)]
    assert found[0] == found[1] == pytest.approx([0.1, 0.7, 0.55])
    assert len(chat.requests) == 4  # three alone, one of all
    words = [" ".join(texts(body["messages"])) for _, _, body in chat.requests]
    assert all(outcome().example.instruction in text and "Given: composite" in text for text in words)
    assert sum("3 answers follow" in text for text in words) == 1


def test_a_malformed_score_is_asked_for_again_and_what_stays_without_one_says_nothing():
    first = ["Seven."]

    def choose(messages: Any) -> str:
        if first and not is_grid(messages):
            return first.pop()
        return verdicts(2, 4, 6, grid=[11, 0, 0])(messages)  # the grid's scores are out of range

    with serve(chat := Chat(choose)) as url:
        found = JudgeSettings(url, "vlm", tries=2).reward().measure(outcome())
    assert found.tolist() == pytest.approx([0.2, 0.4, 0.6])  # alone
    assert len(chat.requests) == 3 + 1 + 2


def test_generations_without_a_score_are_left_out():
    def choose(messages: Any) -> str:
        made = verdicts(2, 4, 6, grid=[5, 5, 5])(messages)
        return "no" if made == '{"scores": [4]}' else made

    with serve(Chat(choose)) as url:
        found = JudgeSettings(url, "vlm", tries=1).reward().measure(outcome())
    assert found.tolist() == pytest.approx([0.35, float("nan"), 0.55], nan_ok=True)


def test_a_judge_that_never_scores():
    with serve(Chat(lambda messages: "no")) as url, pytest.raises(InputError, match="scores nothing"):
        JudgeSettings(url, "vlm", tries=1).reward().measure(outcome())


@pytest.mark.parametrize(
    "said",
    ["no", "{}", '{"scores": 5}', '{"scores": ["5"]}', '{"scores": [5, 5]}', '{"scores": [-1]}', "{" * 9999 + "}"],
)
def test_malformed_scores(said):
    with pytest.raises(Malformed):
        judge._reader(1)(said)


def test_a_judge_that_is_not_there_or_lacks_its_key(monkeypatch):
    with serve(Chat(str)) as url:
        pass
    with pytest.raises(InputError, match="cannot be reached"):
        JudgeSettings(url, "vlm", tries=1).reward().measure(outcome())
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(InputError, match="NO_SUCH_KEY is not set"):
        JudgeSettings(url, "vlm", key_from="NO_SUCH_KEY").reward()
    monkeypatch.setenv("A_KEY", "secret")
    with serve(chat := Chat(verdicts(2, 4, 6, grid=[0, 10, 5]))) as url:
        JudgeSettings(url, "vlm", key_from="A_KEY").reward().measure(outcome())
    assert {headers["authorization"] for _, headers, _ in chat.requests} == {"Bearer secret"}


@pytest.mark.parametrize(("group", "layers"), [(8, 1), (8, 2), (3, 3), (1, 2)])
def test_the_grid_shows_every_generation(group, layers):
    made = judge.shown(torch.ones(group, layers, 4, 40, 60) * torch.rand(group, 1, 1, 1, 1), 60)
    wide, tall = made.size
    columns = wide // (60 * layers + judge.GAP)
    rows = tall // (40 + judge.TOP + judge.GAP)
    assert columns * rows >= group and 0.3 < wide / tall < 5
    assert "".join(re.findall(r"\d", judge.GRID.format(group=group)))[:1] == str(group)


# ---- in a recipe -----------------------------------------------------------------------------------------------------


def recipe(**more: Any) -> ReinforcementRecipe:
    base = {
        "kind": "reinforcement",
        "start": "nano",
        "fit": {"output": "runs/x", "steps": 1, "lr": 1e-4},
        "tasks": {"matting_auto": 1},
        "grpo": {},
    }
    return config.build(ReinforcementRecipe, base | more)


def test_a_recipe_names_rewards_from_elsewhere():
    made = recipe(
        text_match={"function": "torch:ones"},
        services={"aesthetics": {"url": "http://localhost:9000/score", "categories": ["matting"]}},
        judge={"url": "http://localhost:8000/v1", "model": "vlm"},
        rewards={"text": 1.0, "aesthetics": 0.5, "judge": 2.0, "alpha": 1.0},
    )
    scoring = made._scoring()
    assert list(scoring.more) == ["text", "aesthetics", "judge"]
    assert scoring.more["aesthetics"].categories == ("matting",)
    assert set(scoring.more["judge"].categories) == {row.category for row in TASKS.values()}
    assert list(recipe()._scoring().weights) == list(RELEASED)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"rewards": {"judge": 1}}, "the reward 'judge' is not known"),
        ({"judge": {"url": "http://localhost/v1", "model": "x"}}, "'judge' comes from, but gives it no weight"),
        ({"services": {"alpha": {"url": "http://localhost"}}, "rewards": {"alpha": 1}}, "services.alpha has the name"),
        ({"services": {"a": {"url": "ftp://localhost"}}, "rewards": {"a": 1}}, "no address of a reward service"),
        ({"services": {"a": {"url": "http://x", "key": "y"}}, "rewards": {"a": 1}}, "unknown key 'services.a.key'"),
        ({"judge": {"url": "http://localhost/v1"}, "rewards": {"judge": 1}}, "lacks 'judge.model'"),
        ({"rewards": {"alpha": 0}}, "use a weight above 0"),
    ],
)
def test_bad_recipes_in_one_sentence(more, words):
    with pytest.raises(InputError, match=words):
        recipe(**more)._scoring()
