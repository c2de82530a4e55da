"""The protocols of rembg and remove.bg, by the requests that their documentation shows."""

import base64
import io
import zipfile
from typing import Any

import numpy as np
import pytest

from served import SIZE, Serve, StubEngine, opened, png

FILE = {"file": ("x.png", png(), "image/png")}
IMAGE = {"image_file": ("x.png", png(), "image/png")}
TOP = SIZE[0] // 4  # rows that the stub leaves transparent


# ---- rembg ---------------------------------------------------------------------------------------------------------


def test_rembg_in_form_and_query(serve: Serve) -> None:
    client = serve()
    plain = client.post("/api/remove", files=FILE)
    assert plain.status_code == 200 and plain.headers["content-type"] == "image/png"
    assert opened(plain.content).mode == "RGBA"
    mask = opened(client.post("/api/remove?om=true", files=FILE).content)
    assert mask.mode == "L" and mask.size == SIZE[::-1] and set(np.unique(mask)) == {0, 255}
    assert client.post("/api/remove", files=FILE, data={"om": "true"}).content == mask_bytes(mask)
    coloured = np.asarray(opened(client.post("/api/remove?bgc=255,0,0,255", files=FILE).content))
    assert (coloured[:TOP] == (255, 0, 0, 255)).all() and (coloured[TOP:, :, 0] == 0).all()
    smooth = np.asarray(opened(client.post("/api/remove", files=FILE, data={"ppm": "1", "om": "1"}).content))
    assert set(np.unique(smooth)) <= {0, 255} and abs(int((smooth == 0).any(1).sum()) - TOP) <= 1
    defaults = {"model": "nano", "a": "false", "af": "240", "ab": "10", "ae": "10", "om": "", "extras": "{}"}
    assert client.post("/api/remove", files=FILE, data=defaults).content == plain.content
    assert client.post("/api/remove", files=FILE, data={"a": "true"}).status_code == 200


def mask_bytes(mask: Any) -> bytes:
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("omm=1", "did you mean 'om'"),
        ("af=200", "af='200' is not served"),
        ("ae=3", "ae='3'"),
        ("bgc=red", "r,g,b,a"),
        ("bgc=1,2,3,256", "0 to 255"),
        ("model=u2net", "use nano"),
        ('extras={"points":1}', "extras are not served"),
        ("a=perhaps", "neither true nor false"),
        ("om=1&om=0", "twice"),
        ("url=http://x", "no option 'url'"),
    ],
)
def test_rembg_refuses_by_name(query: str, words: str, serve: Serve) -> None:
    answer = serve().post(f"/api/remove?{query}", files=FILE)
    assert answer.status_code == 400 and words in answer.json()["detail"]


def test_rembg_without_a_picture(serve: Serve) -> None:
    client = serve()
    assert "0 files were sent as file" in client.post("/api/remove").json()["detail"]
    refused = client.get("/api/remove", params={"url": "http://example.com/x.png"})
    assert refused.status_code == 403 and "--allow-urls" in refused.json()["detail"]
    assert client.get("/api/remove").status_code == 400


# ---- remove.bg -----------------------------------------------------------------------------------------------------


def test_removebg_ways_to_send(serve: Serve) -> None:
    client, plain = serve(), png()
    encoded = base64.b64encode(plain).decode()
    ways = [
        client.post("/v1.0/removebg", files=IMAGE, data={"size": "auto"}, headers={"X-Api-Key": "any"}),
        client.post("/v1.0/removebg", data={"image_file_b64": encoded}),
        client.post("/v1.0/removebg", json={"image_file_b64": f"data:image/png;base64,{encoded}", "crop": False}),
    ]
    for answer in ways:
        assert answer.status_code == 200 and answer.content == ways[0].content, answer.text
        assert (answer.headers["x-width"], answer.headers["x-height"]) == (str(SIZE[1]), str(SIZE[0]))
        assert answer.headers["x-foreground-top"] == str(TOP)
    as_json = client.post("/v1.0/removebg", files=IMAGE, headers={"Accept": "application/json"}).json()["data"]
    assert base64.b64decode(as_json["result_b64"]) == ways[0].content and as_json["foreground_top"] == TOP


def test_removebg_formats_and_grounds(serve: Serve) -> None:
    client = serve()

    def ask(**data: Any) -> Any:
        files = IMAGE | ({"bg_image_file": ("b.png", data.pop("ground"))} if "ground" in data else {})
        answer = client.post("/v1.0/removebg", files=files, data=data)
        assert answer.status_code == 200, answer.text
        return answer

    archive = zipfile.ZipFile(io.BytesIO(ask(format="zip").content))
    assert archive.namelist() == ["color.jpg", "alpha.png"]
    assert opened(archive.read("alpha.png")).mode == "L" and opened(archive.read("color.jpg")).mode == "RGB"
    assert opened(ask(channels="alpha").content).mode == "L"
    on_colour = ask(bg_color="81d4fa", format="jpg")
    assert on_colour.headers["content-type"] == "image/jpeg"
    assert abs(np.asarray(opened(on_colour.content))[0, 0].astype(int) - (0x81, 0xD4, 0xFA)).max() < 6
    assert ask(bg_color="white").headers["content-type"] == "image/jpeg"  # auto: nothing shows through
    assert ask(bg_color="ffffff80").headers["content-type"] == "image/png"
    ground = np.asarray(opened(ask(ground=png((50, 9), colour=(0, 255, 0)), format="png").content))
    assert ground.shape == (*SIZE, 4) and ground[0, 0].tolist() == [0, 255, 0, 255]
    assert ask(format="webp").headers["content-type"] == "image/webp"


def test_removebg_crop_scale_position_and_region(serve: Serve) -> None:
    client, (height, width) = serve(), SIZE

    def ask(**data: Any) -> np.ndarray:
        answer = client.post("/v1.0/removebg", files=IMAGE, data=data | {"format": "png"})
        assert answer.status_code == 200, answer.text
        assert (answer.headers["x-width"], answer.headers["x-height"]) == tuple(map(str, opened(answer.content).size))
        return np.asarray(opened(answer.content))[..., 3]

    assert ask(crop="true").shape == (height - TOP, width)
    assert ask(crop="true", crop_margin="3px 2px").shape == (height - TOP + 6, width + 4)
    assert ask(crop="true", crop_margin="50%").shape == (2 * (height - TOP), 2 * width)
    half = ask(scale="50%")
    rows, columns = np.nonzero(half.any(1))[0], np.nonzero(half.any(0))[0]
    assert half.shape == SIZE and len(columns) == width // 2 and columns[0] == width // 4
    assert abs(rows[0] - (height - rows[-1] - 1)) <= 1
    low = ask(scale="50%", position="0% 100%")
    assert np.nonzero(low.any(0))[0][0] == 0 and np.nonzero(low.any(1))[0][-1] == height - 1
    region = ask(roi="8px 4px 50% 100%")
    assert not region[:, :8].any() and not region[:, width // 2 :].any() and not region[:4].any()
    assert region[4 + (height - 4) // 4 :, 8 : width // 2].all()
    small = ask(size="preview")
    assert small.shape == SIZE


def test_sizes_are_budgets(serve: Serve) -> None:
    picture = {"image_file": ("x.png", png((600, 800)))}
    answer = serve().post("/v1.0/removebg", files=picture, data={"size": "preview"})
    assert int(answer.headers["x-width"]) * int(answer.headers["x-height"]) <= 251_000
    assert opened(answer.content).size == (int(answer.headers["x-width"]), int(answer.headers["x-height"]))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"add_shadow": "true"}, "add_shadow='true' is not served"),
        ({"type": "person"}, "type='person' is not served"),
        ({"size": "huge"}, "size='huge'"),
        ({"bg_colour": "red"}, "did you mean 'bg_color'"),
        ({"bg_color": "reddish"}, "is no colour"),
        ({"format": "jpg"}, "jpg has no transparency"),
        ({"channels": "alpha", "format": "jpg"}, "channels=alpha"),
        ({"crop_margin": "3px"}, "without crop"),
        ({"crop": "true", "crop_margin": "3"}, "no length"),
        ({"crop": "true", "crop_margin": "1px 2px 3px"}, "3 lengths"),
        ({"crop": "true", "crop_margin": "501px"}, "no length"),
        ({"crop": "true", "crop_margin": "101%"}, "no length"),
        ({"scale": "5%"}, "10% to 100%"),
        ({"position": "left"}, "use original, center"),
        ({"roi": "1 2 3"}, "is no region"),
        ({"roi": "0px 0px 0px 9px"}, "is empty"),
        ({"roi": "0px 0px 999px 9px"}, "no length"),
        ({"image_file_b64": "!!"}, "both given"),
        ({"image_url": "http://x"}, "both given"),
    ],
)
def test_removebg_refuses_by_name(data: Any, words: str, serve: Serve) -> None:
    answer = serve().post("/v1.0/removebg", files=IMAGE, data=data)
    assert answer.status_code == 400 and words in answer.json()["errors"][0]["title"], answer.text
    assert answer.json()["errors"][0]["code"] == "invalid_parameters"


def test_removebg_without_a_picture_or_a_subject(serve: Serve, engine: StubEngine) -> None:
    client = serve()
    assert "no picture was given" in client.post("/v1.0/removebg").text
    assert "not base64" in client.post("/v1.0/removebg", json={"image_file_b64": "!!"}).text
    assert client.post("/v1.0/removebg", json={"image_url": "http://x"}).status_code == 403
    assert (
        client.post("/v1.0/removebg", content=b"[1]", headers={"Content-Type": "application/json"}).status_code == 400
    )
    assert client.post("/v1.0/removebg", json={"image_file_b64": ["a"]}).status_code == 400
    answer = client.post("/v1.0/removebg", files={"image_file": ("x", png((4, 1)))}, data={"roi": "0px 0px 1px 1px"})
    assert answer.status_code == 200  # a region of one pixel


def test_account_without_keys(serve: Serve) -> None:
    assert serve().get("/v1.0/account").json()["data"]["attributes"]["credits"]["total"] == -1
