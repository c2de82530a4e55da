"""OpenAI's images, by its own client against a server that listens."""

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from served import SIZE, Serve, StubEngine, listening, opened, png

openai = pytest.importorskip("openai")


@pytest.fixture
def client(engine: StubEngine) -> Iterator[Any]:
    with listening(engine) as (url, _):
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def pictures(answer: Any) -> list[Image.Image]:
    return [opened(base64.b64decode(row.b64_json)) for row in answer.data]


def mask(size: tuple[int, int] = SIZE) -> bytes:
    """Opaque, but transparent in the middle."""
    array = np.full((*size, 4), 255, np.uint8)
    array[8:16, 8:16, 3] = 0
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_client_of_openai(client: Any, engine: StubEngine) -> None:
    made = client.images.generate(
        prompt="a red mug", n=3, size="48x32", background="transparent", extra_body={"seed": 5, "steps": 1}
    )
    assert [one.size for one in pictures(made)] == [(48, 32)] * 3
    assert [one.getpixel((0, 31))[0] for one in pictures(made)] == [5, 6, 7]
    assert made.size == "48x32" and made.model_extra["task"] == "text_to_image"
    cut = client.images.edit(image=png(), prompt="the disk", background="transparent")
    assert pictures(cut)[0].mode == "RGBA" and cut.model_extra["prompt_used"] is True
    removed = client.images.edit(image=[png()], mask=mask(), prompt="nothing", n=2, extra_body={"steps": 1})
    assert len(removed.data) == 2 and removed.model_extra["task"] == "removal_rough"
    layers = client.images.edit(
        image=png(), prompt="", extra_body={"task": "decompose_auto", "layers": 3, "num_inference_steps": 1}
    )
    assert len(layers.data) == 3 and pictures(layers)[0].getpixel((0, 0))[3] == 255
    whole = client.images.edit(
        image=[png(), png()], prompt="a beach", extra_body={"task": "foreground_to_full", "steps": 1}
    )
    assert whole.model_extra["prompt_used"] is True
    jpeg = client.images.edit(image=png(), prompt="", background="opaque", output_format="jpeg", size="32x24")
    assert pictures(jpeg)[0].format == "JPEG"
    assert [row.id for row in client.models.list()] == ["nano"]
    assert [row for row in engine.seen if row[0].startswith("decompose")] == [["decompose_auto"]]


@pytest.mark.parametrize("reads", [True, False])
def test_a_model_that_reads_follows_the_prompt(engine: StubEngine, reads: bool) -> None:
    engine.card = replace(engine.card, reads=reads)
    with listening(engine) as (url, _):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        told = client.images.edit(image=png(), prompt="the disk").model_extra
        assert told["task"] == ("matting_text" if reads else "matting_auto") and told["prompt_used"] is reads
        assert client.images.edit(image=png(), prompt=" ").model_extra["task"] == "matting_auto"


def test_errors_reach_the_client(client: Any) -> None:
    for words, call in (
        ("use 1 to 10", lambda: client.images.generate(prompt="a", n=11)),
        ("use b64_json", lambda: client.images.generate(prompt="a", response_format="url")),
        ("quality='hd'", lambda: client.images.generate(prompt="a", quality="hd")),
        ("did you mean 'seed'", lambda: client.images.generate(prompt="a", extra_body={"sed": 1})),
        (
            "mean the same",
            lambda: client.images.generate(prompt="a", extra_body={"steps": 1, "num_inference_steps": 1}),
        ),
        ("no option 'layers'", lambda: client.images.edit(image=png(), prompt="", extra_body={"layers": 2})),
        (
            "takes no mask",
            lambda: client.images.edit(image=png(), mask=mask(), prompt="", extra_body={"task": "matting_auto"}),
        ),
        ("opaque everywhere", lambda: client.images.edit(image=png(), mask=png(), prompt="")),
        ("same size", lambda: client.images.edit(image=png(), mask=mask((32, 32)), prompt="")),
        ("size of the image", lambda: client.images.edit(image=png(), prompt="", size="1024x1024")),
        (
            "n=2 is not for",
            lambda: client.images.edit(image=png(), prompt="", n=2, extra_body={"task": "decompose_auto"}),
        ),
        ("2 pictures as composite", lambda: client.images.edit(image=[png(), png()], prompt="")),
        ("jpg has no transparency", lambda: client.images.edit(image=png(), prompt="", output_format="jpeg")),
        ("stream='true'", lambda: client.images.generate(prompt="a", stream=True)),
        ("needs a text", lambda: client.images.generate(prompt=" ")),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            call()
        assert words in caught.value.body["message"] and caught.value.type == "invalid_request_error", caught.value
    with pytest.raises(openai.NotFoundError, match="not served"):
        client.images.edit(image=png(), prompt="", model="gpt-image-1")


def test_edits_by_json(serve: Serve) -> None:
    client = serve()
    data = "data:image/png;base64," + base64.b64encode(png()).decode()
    hole = "data:image/png;base64," + base64.b64encode(mask()).decode()
    body = {"images": [{"image_url": data}], "mask": {"image_url": hole}, "prompt": "x", "steps": 1, "n": 1}
    made = client.post("/v1/images/edits", json=body).json()
    assert made["task"] == "removal_rough" and len(made["data"]) == 1
    for broken in ({"images": [{"file_id": "a"}]}, {"images": ["a"]}, {"images": [{"image_url": 3}]}, {"images": []}):
        assert client.post("/v1/images/edits", json=broken).status_code == 400
    url = client.post("/v1/images/edits", json={"images": [{"image_url": "http://example.com/x"}]})
    assert url.status_code == 403 and url.json()["error"]["code"] == "forbidden"
    assert json.loads(client.post("/v1/images/generations", json=[]).text)["error"]["type"] == "invalid_request_error"
