"""Requests and pictures that are damaged, odd or made by chance: refused, and never a fault."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from served import Serve, png

PICTURE = {"composite": ("secret-name.png", png(), "image/png")}
CUT = "/v1/tasks/matting_auto"
ALL = ("/v1/tasks/matting_auto", "/api/remove", "/v1.0/removebg", "/v1/images/edits", "/v1/images/generations")


HEAD = b'--b\r\nContent-Disposition: form-data; name="composite"; filename="x"\r\n\r\n'
BODIES = [
    b"",
    b"--b",
    b"--b--",
    b"--b\r\n\r\n\r\n--b--",
    HEAD,
    HEAD + b"abc",
    HEAD + b"abc\r\n--b",
    HEAD + png()[:60] + b"\r\n--b--\r\n",
    b"--c\r\n\r\nabc\r\n--c--",
    b"--b\r\nContent-Disposition: form-data\r\n\r\nabc\r\n--b--\r\n",
    b'--b\r\nContent-Disposition: form-data; name="\xff\xfe"\r\n\r\nabc\r\n--b--\r\n',
    b'--b\r\nContent-Disposition: form-data; name="steps"\r\n\r\n\xff\xfe\r\n--b--\r\n',
    b"--b\r\n" + b"A" * 70_000 + b": x\r\n\r\nabc\r\n--b--\r\n",
    b"--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c--\r\n--b--\r\n",
    b"\x00" * 1000,
    b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n\r\n' * 200 + b"--b--\r\n",
]
TYPES = [
    "multipart/form-data; boundary=b",
    "multipart/form-data",
    "multipart/form-data; boundary=",
    "multipart/form-data; boundary=b; charset=nonsense",
    "application/x-www-form-urlencoded",
    "application/json",
    "text/plain",
    "",
]


@pytest.mark.parametrize("kind", TYPES)
def test_damaged_bodies(kind: str, serve: Serve) -> None:
    client = serve()
    for where in ALL:
        for body in BODIES:
            answer = client.post(where, content=body, headers={"Content-Type": kind} if kind else {})
            assert 400 <= answer.status_code < 500, (where, body[:60], answer.text)
            assert answer.json(), answer.text


def test_pictures_made_by_chance(serve: Serve) -> None:
    client, whole = serve(jobs_per_key=10_000, queue=10_000), png()
    heads = st.sampled_from(
        [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"RIFF\0\0\0\0WEBP", b"\xff\xd8\xff\xe0", b"BM"]
    )
    changed = st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)).map(
        lambda at: whole[: at[0]] + bytes([at[1]]) + whole[at[0] + 1 :]
    )

    @settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.tuples(heads, st.binary(max_size=300)).map(b"".join) | changed)
    def ask(data: bytes) -> None:
        answer = client.post("/api/remove", files={"file": ("x", data)})
        assert answer.status_code in (200, 400, 413), answer.text
        assert answer.status_code == 200 or "traceback" not in answer.text.lower()

    ask()


def test_odd_values_of_fields(serve: Serve) -> None:
    client = serve()
    odd = [
        "",
        " ",
        "\0",
        "é" * 3000,
        "-1",
        "1e999",
        "NaN",
        "9" * 400,
        "[]",
        "١",
        "../../etc",
        "%s%n",
        "\ud7ff",
        "1" * 5000,
    ]
    for name in ("seed", "steps", "guidance", "frame", "raw", "layers", "prompt"):
        for value in odd:
            answer = client.post(CUT, files=PICTURE, data={name: value})
            assert answer.status_code in (202, 400, 429), (name, value, answer.text)
    for name in ("bg_color", "roi", "scale", "position", "crop_margin", "size", "image_url", "image_file_b64"):
        for value in odd:
            files = {} if name.startswith("image") else {"image_file": ("x", png())}
            crop = {"crop": "true"} if name == "crop_margin" else {}
            answer = client.post("/v1.0/removebg", files=files, data={name: value} | crop)
            assert answer.status_code in (200, 400, 403, 429), (name, value, answer.text)
    for value in odd:
        for name in ("n", "size", "seed", "prompt", "background", "task"):
            answer = client.post("/v1/images/generations", data={"prompt": "a"} | {name: value})
            assert answer.status_code in (200, 400, 413, 429), (name, value, answer.text)
    for name in ("%00", "a" * 3000, "..%2f..", "%F0%9F%98%80"):
        assert client.get(f"/v1/jobs/{name}").status_code == 404
        assert client.post(f"/v1/tasks/{name}").status_code in (400, 404)
