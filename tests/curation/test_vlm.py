"""A vision-language model and an editing model behind servers, as curation asks them."""

import base64
import io
import json
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from chat_server import Chat, serve
from omnialpha.curation import answers
from omnialpha.curation.candidate import Rejected
from omnialpha.curation.vlm import Server, VLMSettings
from omnialpha.errors import InputError
from omnialpha.evaluation.judge.endpoint import Unanswered

GOOD = "A desk by a window in the rain."
PICTURE = torch.rand(4, 24, 40, generator=torch.Generator().manual_seed(0))


def background(text: str) -> str:
    return answers.background(text)["background_caption"]


def test_a_question_shows_the_picture_on_grey_and_no_larger_than_it_may() -> None:
    chat, usage = Chat(lambda messages: GOOD), {}
    with serve(chat) as url:
        assert Server(VLMSettings(url, "m", side=20)).ask("What?", [PICTURE], background, usage) == GOOD
    picture, text = chat.requests[0][2]["messages"][0]["content"]
    assert text["text"] == "What?" and chat.requests[0][2]["model"] == "m"
    with Image.open(io.BytesIO(base64.b64decode(picture["image_url"]["url"].split(",")[1]))) as image:
        assert image.size == (20, 12) and image.mode == "RGB"
    clear = torch.zeros(4, 16, 16)
    with serve(chat) as url:
        Server(VLMSettings(url, "m")).ask("What?", [clear], background, usage)
    shown = chat.requests[1][2]["messages"][0]["content"][0]["image_url"]["url"].split(",")[1]
    assert np.unique(np.asarray(Image.open(io.BytesIO(base64.b64decode(shown))))).tolist() == [128]


def test_tokens_are_counted_over_all_tries() -> None:
    class Counting(Chat):
        def answer(self, body: dict) -> bytes:  # type: ignore[type-arg]
            return json.dumps(
                json.loads(super().answer(body)) | {"usage": {"prompt_tokens": 70, "completion_tokens": 9}}
            ).encode()

    said, usage = iter(["Nein.", GOOD]), {"prompt_tokens": 1}
    with serve(Counting(lambda messages: next(said))) as url:
        Server(VLMSettings(url, "m")).ask("What?", [PICTURE], background, usage)
    assert usage == {"prompt_tokens": 141, "completion_tokens": 18}


def test_a_bad_answer_is_asked_again_with_what_is_wrong_and_rejected_in_the_end() -> None:
    chat = Chat(lambda messages: "Ein Tisch.")
    with serve(chat) as url, pytest.raises(Rejected, match=r"the text is not English \(tries: 3\)"):
        Server(VLMSettings(url, "m", tries=3)).ask("What?", [PICTURE], background, {})
    _, said, reminder = chat.requests[1][2]["messages"]
    assert said["content"] == "Ein Tisch." and "cannot be used: the text is not English." in reminder["content"]


def test_a_server_that_fails_is_no_reason_to_reject() -> None:
    busy = (500, b"", {})
    with serve(Chat(lambda messages: GOOD, [busy, (429, b"", {"Retry-After": "0.1"})])) as url:
        assert Server(VLMSettings(url, "m")).ask("What?", [PICTURE], background, {}) == GOOD
    with serve(Chat(lambda messages: GOOD, [busy] * 9)) as url, pytest.raises(Unanswered, match="status 500"):
        Server(VLMSettings(url, "m", tries=2)).ask("What?", [PICTURE], background, {})
    with serve(Chat(lambda messages: GOOD, [(401, b"no", {})])) as url, pytest.raises(InputError, match="refuses"):
        Server(VLMSettings(url, "m")).ask("What?", [PICTURE], background, {})


def test_no_more_questions_at_once_and_a_minute_than_allowed() -> None:
    def slowly(messages: object) -> str:
        time.sleep(0.05)
        return GOOD

    chat = Chat(slowly)
    with serve(chat) as url, ThreadPoolExecutor(12) as pool:
        server = Server(VLMSettings(url, "m", parallel=3))
        list(pool.map(lambda k: server.ask(f"{k}", [PICTURE], background, {}), range(12)))
    assert chat.most_under_way == 3
    chat = Chat(lambda messages: GOOD)
    with serve(chat) as url, ThreadPoolExecutor(6) as pool:
        server, began = Server(VLMSettings(url, "m", per_minute=600)), time.monotonic()
        list(pool.map(lambda k: server.ask(f"{k}", [PICTURE], background, {}), range(6)))
    assert time.monotonic() - began > 0.49  # five pauses of a tenth of a second


def test_a_picture_is_edited_by_the_protocol_with_a_mask_that_is_clear_where_it_may_change(image_server) -> None:  # type: ignore[no-untyped-def]
    hole = (torch.arange(40) > 20).float().expand(24, 40)
    made = Server(VLMSettings(image_server.url, "painter")).edit(PICTURE, "Take it away.", hole)
    fields = image_server.fields[0]
    assert fields["prompt"] == b"Take it away." and fields["model"] == b"painter"
    with Image.open(io.BytesIO(fields["mask"])) as mask:
        alpha = np.asarray(mask)[..., 3]
    assert (alpha[:, :21] == 255).all() and (alpha[:, 21:] == 0).all()
    assert made.shape == PICTURE.shape and bool((made[3] == 1).all())
    image_server.answer = b'{"data": [{"b64_json": "bm8="}]}'
    with pytest.raises(Unanswered, match="holds no picture"):
        Server(VLMSettings(image_server.url, "painter")).edit(PICTURE, "x")
    image_server.status = 500
    with pytest.raises(Unanswered, match="status 500"):
        Server(VLMSettings(image_server.url, "painter", tries=1)).edit(PICTURE, "x")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"url": "x"}, "no address of a chat model"),
        ({"url": "http://h/v1", "parallel": 0}, "parallel=0"),
        ({"url": "http://h/v1", "per_minute": -1.0}, "per_minute=-1"),
        ({"url": "http://h/v1", "key": "NO_SUCH_KEY_HERE"}, "NO_SUCH_KEY_HERE is not set"),
    ],
)
def test_settings_that_cannot_be_used(settings: dict, said: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(InputError, match=said):
        Server(VLMSettings(**settings))
