"""The judge against a server on this machine that speaks the protocol, well and badly."""

import base64
import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chat_server import Chat, Messages, good, pictures, serve, texts
from judged_runs import GREY, SIZE, sample, two
from omnialpha.errors import InputError
from omnialpha.evaluation.judge import verdicts
from omnialpha.evaluation.judge.endpoint import Endpoint, Malformed, content
from omnialpha.evaluation.judge.judge import VERDICTS_FILE, Judge, count, parse
from omnialpha.evaluation.judge.pairs import ASPECTS, aspects, flat, match
from omnialpha.evaluation.judge.verdicts import Answer
from omnialpha.evaluation.methods.predictions import read_requests, write_requests

KEY = "sk-a-very-secret-key"
KEYS = ("one", "two", "deep/three")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy before this machine, and short pauses between the client's tries."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)


def judge(url: str, *names: str, **limits: float) -> Judge:
    told = {"timeout": 5.0} | limits
    return Judge(Endpoint(url, "vlm", KEY, **told), aspects(names or ("overall",)))  # type: ignore[arg-type]


def level(uri: str) -> float:
    """The mean of the opaque right half of a picture, in [0, 1]."""
    with Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2]))) as image:
        return float(np.asarray(image)[:, image.width // 2 :].mean() / 255)


def brighter(messages: Messages) -> str:
    """An honest judge, who takes the brighter result: that of B."""
    shown = pictures(messages)
    return good("A" if level(shown["Result A: full"]) > level(shown["Result B: full"]) else "B", "brighter")


def always(said: str) -> Callable[[Messages], str]:
    return lambda messages: said


def rows(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / VERDICTS_FILE).read_text().splitlines()]


# ---- what is asked --------------------------------------------------------------------------------------------------


def test_both_orders_of_each_pair(tmp_path: Path) -> None:
    chat, pairs = Chat(brighter), match(*two(tmp_path, KEYS))
    with serve(chat) as url:
        answers = judge(url).ask(pairs.pairs, tmp_path / "out")
    assert [(a.sample, a.first, a.verdict, a.reason) for a in answers] == [
        (key, side, "B", "brighter") for key in KEYS for side in "AB"
    ]
    path, headers, body = chat.requests[0]
    assert path == "/v1/chat/completions" and headers["authorization"] == f"Bearer {KEY}"
    assert (body["model"], body["temperature"], len(body["messages"])) == ("vlm", 0, 1)


def test_what_a_question_holds(tmp_path: Path) -> None:
    chat, pairs = Chat(always(good("tie"))), match(*two(tmp_path, ["one"]))
    with serve(chat) as url:
        judge(url, *ASPECTS).ask(pairs.pairs, tmp_path / "out")
    assert len(chat.requests) == 8 == count(pairs.pairs, tuple(ASPECTS))
    for number, (_, _, body) in enumerate(chat.requests):
        told, shown = texts(body["messages"]), pictures(body["messages"])
        assert list(shown) == ["Given: composite", "Result A: full", "Result B: full"]
        assert list(ASPECTS.values())[number // 2].question in told[0]
        assert "Do it to one." in told[0] and "a one" in told[0] and "checkerboard" in told[0]
        assert "heron" not in str(told) and "otter" not in str(told)
        levels = [level(shown["Result A: full"]), level(shown["Result B: full"])]
        assert levels == pytest.approx([GREY["A"], GREY["B"]][:: -1 if number % 2 else 1], abs=0.01)


def test_layers_and_samples_without_a_text_or_pictures(tmp_path: Path) -> None:
    chat = Chat(always(good("A")))
    bare = replace(sample("bare", tmp_path / "in"), prompt="", inputs={})
    a, b = two(tmp_path, ["bare"])
    for folder in (a, b):
        write_requests(folder, [bare])
    assert [p.applies(name) for p in match(a, b).pairs for name in ASPECTS] == [True, True, False, False]

    import judged_runs

    layered = [sample("layered", tmp_path / "in", layers=2)]
    pairs = match(*(judged_runs.run(tmp_path / name, layered, 0.5) for name in ("x", "y")))
    with serve(chat) as url:
        judge(url).ask(pairs.pairs, tmp_path / "out")
    assert list(pictures(chat.requests[0][2]["messages"]))[1:] == [
        "Result A: full 1", "Result A: full 2", "Result B: full 1", "Result B: full 2",
    ]  # fmt: skip


def test_flat_pictures() -> None:
    """Colour under alpha 0 is not seen; the longer side shrinks to what is allowed."""
    import torch

    clear = torch.rand(4, 40, 80)
    clear[3] = 0
    assert set(np.unique(flat(clear, "checkerboard", 80))) == {204, 255}
    assert set(np.unique(flat(clear, "grey", 80))) == {128}
    assert flat(clear, "white", 20).shape == (10, 20, 3)


# ---- what comes back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        good("A", "why"),
        f"\n{good('A', 'why')}\n",
        f"```json\n{good('A', 'why')}\n```",
        f"```\n{good('A', 'why')}\n```\n",
        f"<think>A or B? {{}}\n</think>\n\n{good('A', 'why')}",
    ],
)
def test_answers_in_the_asked_form(said: str) -> None:
    assert parse(said) == ("A", "why")


@pytest.mark.parametrize(
    "said",
    [
        "",
        "A",
        '"A"',
        "null",
        f"I think: {good('A')}",
        f"{good('A')} or {good('B')}",
        f"```json\n{good('A')}\n```\nbecause",
        '{"verdict": "A"}',
        '{"reason": "", "verdict": "a"}',
        '{"reason": "", "verdict": "C"}',
        '{"reason": "", "verdict": ["A"]}',
        '{"reason": null, "verdict": "A"}',
        '{"reason": "", "verdict": "A", "verdict": "B"}',
        '{"reason": "", "verdict": "A", "score": 1}',
        '[["reason", ""], ["verdict", "A"]]',
        "{'reason': '', 'verdict': 'A'}",
        "[" * 100_000,
    ],
)
def test_all_else_is_malformed(said: str) -> None:
    with pytest.raises(Malformed):
        parse(said)


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"choices": []}', b'{"choices": [{"message": {}}]}', b"\xff",
                                  b'{"choices": [{"message": {"content": null}}]}', b'{"error": "no"}'])  # fmt: skip
def test_wrong_schemas(body: bytes) -> None:
    with pytest.raises(Malformed, match="the response"):
        content(body)


@pytest.mark.parametrize(
    "trouble",
    [
        (500, b"oops", {}),
        (503, b"", {}),
        (429, b"slow down", {"Retry-After": "0"}),
        (408, b"", {}),
        (200, b"<html>", {}),
        (200, b'{"choices": []}', {}),
        0.3,
    ],
    ids=["500", "503", "429", "408", "not JSON", "wrong schema", "slow"],
)
def test_trouble_that_passes(tmp_path: Path, trouble: tuple[int, bytes, dict[str, str]] | float) -> None:
    pairs = match(*two(tmp_path, ["one"]))
    with serve(chat := Chat(brighter, [trouble, trouble])) as url:
        answers = judge(url, timeout=0.1 if isinstance(trouble, float) else 5).ask(pairs.pairs, tmp_path / "out")
    assert [a.verdict for a in answers] == ["B", "B"] and len(chat.requests) == 4


def test_a_malformed_answer_is_answered_with_a_reminder(tmp_path: Path) -> None:
    said = ["Surely the second.", '{"verdict": "B"}', good("B")]
    pairs = match(*two(tmp_path, ["one"]))
    with serve(chat := Chat(lambda messages: said.pop(0) if said else good("A"))) as url:
        answers = judge(url).ask(pairs.pairs, tmp_path / "out")
    assert [a.verdict for a in answers] == ["B", "B"]
    talks = [body["messages"] for _, _, body in chat.requests]
    assert [len(talk) for talk in talks] == [1, 3, 3, 1]
    assert talks[1][1] == {"role": "assistant", "content": "Surely the second."} and "form" in talks[1][2]["content"]
    assert talks[2][1]["content"] == '{"verdict": "B"}'


@pytest.mark.parametrize(
    ("choose", "trouble", "words", "tries"),
    [
        (always("no"), [], "the answer is not JSON", 3),
        (always(good("C")), [], "the verdict 'C' is none of A, B, tie", 3),
        (brighter, [(500, b"oops", {})] * 3, "status 500: oops", 3),
        (brighter, [0.3] * 3, "no answer within 0.1 s", 3),
        (brighter, [(400, b"too large", {})], "status 400: too large", 1),
        (brighter, [(429, b"", {"Retry-After": "3600"})], "status 429", 1),
        (brighter, [(200, b"{}", {})] * 3, "the response is no chat completion", 3),
    ],
)
def test_an_error_says_why_and_is_no_tie(
    tmp_path: Path, choose: Callable[[Messages], str], trouble: list[object], words: str, tries: int
) -> None:
    """The second order is answered all the same; the next run asks again for what is an error, and only that."""
    pairs = match(*two(tmp_path, ["one"]))
    with serve(chat := Chat(choose, trouble)) as url:  # type: ignore[arg-type]
        answers = judge(url, tries=3, timeout=0.1).ask(pairs.pairs, tmp_path / "out")
        assert answers[0].verdict == "" and words in answers[0].error and f"(tries: {tries})" in answers[0].error
        assert not verdicts.by_sample(answers)
        assert all("choice" not in row for row in rows(tmp_path / "out") if "error" in row)
        asked, chat.choose = len(chat.requests), brighter
        again = judge(url).ask(pairs.pairs, tmp_path / "out")
    assert [a.verdict for a in again] == ["B", "B"]
    assert len(chat.requests) == asked + sum(bool(a.error) for a in answers)


def test_retry_after_is_honoured(tmp_path: Path) -> None:
    pairs = match(*two(tmp_path, ["one"]))
    with serve(chat := Chat(brighter, [(429, b"", {"Retry-After": "1"})])) as url:
        assert all(a.verdict for a in judge(url).ask(pairs.pairs, tmp_path / "out"))
    assert 1.0 <= chat.times[1] - chat.times[0] < 3


@pytest.mark.parametrize("status", [401, 403, 404, 302])
def test_a_refusal_stops_at_once(tmp_path: Path, status: int) -> None:
    body = f"bad key {KEY}".encode()
    pairs = match(*two(tmp_path, KEYS))
    with serve(chat := Chat(brighter, [(status, body, {})] * 99)) as url, pytest.raises(InputError) as caught:
        Judge(Endpoint(url, "vlm", KEY), ("overall",), workers=1).ask(pairs.pairs, tmp_path / "out")
    assert f"127.0.0.1 refuses: status {status}: bad key ***" in str(caught.value)
    assert KEY not in repr(caught.value) and len(chat.requests) == 1


def test_nobody_there(tmp_path: Path) -> None:
    with serve(Chat(brighter)) as url:
        pass
    pairs = match(*two(tmp_path, ["one"]))
    with pytest.raises(InputError, match=r"127\.0\.0\.1 cannot be reached"):
        judge(url, tries=2).ask(pairs.pairs, tmp_path / "out")


# ---- what is kept ---------------------------------------------------------------------------------------------------


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    a, b = two(tmp_path, KEYS)
    out, told = tmp_path / "out", []
    with serve(chat := Chat(brighter)) as url:
        first = judge(url).ask(match(a, b, limit=2).pairs, out)
        assert len(chat.requests) == 4
        again = judge(url).ask(match(a, b).pairs, out, lambda answer, kept: told.append(kept))
        assert len(chat.requests) == 6 and sorted(told) == [False] * 2 + [True] * 4
        assert again[:4] == first
        judge(url, "overall", "quality").ask(match(a, b).pairs, out)  # other words
        assert len(chat.requests) == 12
        replace(judge(url), endpoint=Endpoint(url, "other", KEY)).ask(match(a, b).pairs, out)
        assert len(chat.requests) == 18
        (b / "predictions" / "one.png").write_bytes((b / "predictions" / "two.png").read_bytes())
        judge(url).ask(match(a, b).pairs, out)  # another picture
        assert len(chat.requests) == 20


def test_equal_pictures_are_asked_about_in_both_orders(tmp_path: Path) -> None:
    a, _ = two(tmp_path, ["one"])
    with serve(chat := Chat(always(good("A")))) as url:
        answers = judge(url).ask(match(a, a).pairs, tmp_path / "out")
    assert len(chat.requests) == 2 and [answer.verdict for answer in answers] == ["A", "B"]


def test_a_line_that_was_cut_off_is_asked_again(tmp_path: Path) -> None:
    pairs, out = match(*two(tmp_path, ["one"])), tmp_path / "out"
    with serve(chat := Chat(brighter)) as url:
        judge(url).ask(pairs.pairs, out)
        kept = out / VERDICTS_FILE
        kept.write_bytes(kept.read_bytes()[:-9])
        assert [a.verdict for a in judge(url).ask(pairs.pairs, out)] == ["B", "B"]
    assert len(chat.requests) == 3 and len(rows(out)) == 2


def test_the_key_is_nowhere(tmp_path: Path) -> None:
    pairs, out = match(*two(tmp_path, ["one"])), tmp_path / "out"
    trouble = [(500, KEY.encode(), {})] * 4
    with serve(Chat(always(good("A", f"my key is {KEY}")), trouble)) as url:
        asked = judge(url)
        answers = asked.ask(pairs.pairs, out)
    assert answers[0].error.startswith("status 500: ***") and answers[1].reason == "my key is ***"
    assert KEY not in repr(asked) + repr(answers) + "".join(p.read_text() for p in out.iterdir())


def test_only_the_given_key_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "of-the-environment")
    pairs = match(*two(tmp_path, ["one"]))
    with serve(chat := Chat(brighter)) as url:
        Judge(Endpoint(url, "vlm"), ("overall",)).ask(pairs.pairs, tmp_path / "out")
    sent = chat.requests[0][1]
    assert "authorization" not in sent and "of-the-environment" not in str(sent)


def test_a_missing_client_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(InputError, match=r"omnialpha\[eval\]"):
        judge("http://127.0.0.1:9/v1").ask(match(*two(tmp_path, ["one"])).pairs, tmp_path / "out")


def test_several_at_once_and_a_stop_keeps_what_is_answered(tmp_path: Path) -> None:
    """Ctrl-C while answers are awaited: at once, and the next run asks for the rest only."""
    keys = [str(n) for n in range(6)]
    pairs, out = match(*two(tmp_path, keys)), tmp_path / "out"

    def stop(messages: Messages) -> str:
        if len(chat.requests) == 9:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5 if len(chat.requests) >= 9 else 0.05)
        return brighter(messages)

    with serve(chat := Chat(stop)) as url:
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            Judge(Endpoint(url, "vlm", timeout=30), ("overall",), workers=3).ask(pairs.pairs, out)
        assert time.monotonic() - began < 10 and 1 < chat.most_under_way <= 3
        kept = len(rows(out))
        assert 4 <= kept <= 9
        chat.requests.clear()
        chat.choose = brighter
        answers = judge(url).ask(pairs.pairs, out)
    assert len(chat.requests) == 12 - kept and [a.verdict for a in answers] == ["B"] * 12


def test_a_judge_who_follows_the_order(tmp_path: Path) -> None:
    pairs = match(*two(tmp_path, KEYS))
    with serve(Chat(always(good("A")))) as url:
        groups = verdicts.by_sample(judge(url).ask(pairs.pairs, tmp_path / "out"))
    assert [verdicts.combine([a.verdict for a in group]) for group in groups.values()] == ["tie"] * 3
    bias = verdicts.order_bias(groups)
    assert bias is not None and bias.value == 0.5


# ---- pairs ----------------------------------------------------------------------------------------------------------


def test_missing_samples_are_named(tmp_path: Path) -> None:
    a, b = two(tmp_path, KEYS, {"A": ["two"]})
    write_requests(b, [one for one in read_requests(b).values() if one.key != "one"])
    pairs = match(a, b)
    assert [pair.asked.key for pair in pairs.pairs] == ["deep/three"]
    assert pairs.missing == {"A": ["two"], "B": ["one"]} and pairs.names == {"A": "heron", "B": "otter"}


def test_inputs_are_compared_by_content(tmp_path: Path) -> None:
    a, b = two(tmp_path, ["one"])
    asked = read_requests(b)["one"]
    moved = tmp_path / "moved.png"
    moved.write_bytes(Path(asked.inputs["composite"][0]).read_bytes())
    write_requests(b, [replace(asked, inputs={"composite": [str(moved)]})])
    assert len(match(a, b).pairs) == 1
    Image.new("RGB", SIZE).save(moved)
    with pytest.raises(InputError, match="differ, so sample one is not the same on both sides"):
        match(a, b)
    moved.unlink()
    with pytest.raises(InputError, match=r"moved\.png, a picture that sample one was given, is no file"):
        match(a, b)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"instruction": "Other."}, "its instruction is 'Do it to one.' and 'Other.'"),
        ({"prompt": "other"}, "its prompt is"),
        ({"task": "other"}, "its task is"),
        ({"inputs": {}}, "was given other pictures on each side"),
        ({"key": "other"}, "have pictures of no sample in common"),
    ],
)
def test_runs_that_do_not_compare(tmp_path: Path, change: dict[str, object], words: str) -> None:
    a, b = two(tmp_path, ["one"])
    write_requests(b, [replace(read_requests(b)["one"], **change)])  # type: ignore[arg-type]
    with pytest.raises(InputError, match=words):
        match(a, b)


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "ftp://x/v1", "http://", "http://me:secret@x/v1", "http://x/v1?key=secret", "http://x:a"],
)
def test_addresses_that_are_refused(url: str) -> None:
    with pytest.raises(InputError, match="address") as caught:
        Endpoint(url, "vlm")
    assert "secret" not in str(caught.value)


def test_what_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the key has") as caught:
        Endpoint("http://x/v1", "vlm", "two words")
    assert "two words" not in str(caught.value)
    with pytest.raises(InputError, match="aspect 'beauty' is not known: use overall, quality, prompt, condition"):
        aspects(["beauty"])
    with pytest.raises(InputError, match="workers=0"):
        Judge(Endpoint("http://x/v1", "vlm"), ("overall",), workers=0)
    with pytest.raises(InputError, match="ground 'plaid' is not known"):
        Judge(Endpoint("http://x/v1", "vlm"), ("overall",), "plaid")
    with pytest.raises(InputError, match=r"holds no samples\.jsonl"):
        match(tmp_path, tmp_path)
    addresses = ("http://x/v1/chat/completions", "http://x/v1/", "http://x/v1")
    assert {str(Endpoint(url, "vlm").client().base_url) for url in addresses} == {"http://x/v1/"}
    assert Answer("x", "overall", "A", "A").error == ""
