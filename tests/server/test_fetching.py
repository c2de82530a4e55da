"""Pictures by URL: only from public addresses, whatever a name or a redirect leads to."""

import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from omnialpha.server import fetching
from omnialpha.server.refusals import Refusal
from served import Serve, opened, png

PRIVATE = [
    "127.0.0.1", "127.1.2.3", "0.0.0.0", "10.0.0.1", "172.16.3.4", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "192.0.2.1", "198.18.0.1", "224.0.0.1", "255.255.255.255", "240.0.0.1", "::1", "::", "fe80::1", "fe80::1%eth0",
    "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "2002:7f00:1::",
    "2001:db8::1",
    "2001:0:7f00:1:0:0:80ff:fffe", "nonsense",
]  # fmt: skip
PUBLIC = ["93.184.216.34", "8.8.8.8", "2606:2800:220:1:248:1893:25c8:1946", "::ffff:8.8.8.8", "64:ff9b::808:808"]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses(address: str) -> None:
    assert not fetching.is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    assert fetching.is_public(address)


def refused(url: str, words: str, **more: Any) -> None:
    with pytest.raises(Refusal, match=words):
        fetching.fetch(url, max_bytes=1000, seconds=2, **more)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "169.254.169.254",
        "[::1]",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "[::ffff:7f00:1]",
        "0",
    ],
)
def test_hosts_that_are_private_addresses(host: str) -> None:
    refused(f"http://{host}/latest/meta-data", "not on the public internet")


def test_a_name_that_leads_to_a_private_address() -> None:
    refused("http://pictures.example/x.png", "not on the public", resolver=lambda host, port: ["10.1.2.3"])
    both = ["93.184.216.34", "127.0.0.1"]  # one of several is enough
    refused("https://pictures.example/x.png", "not on the public", resolver=lambda host, port: both)
    refused("http://pictures.example/x.png", "is not known", resolver=lambda host, port: [])


@pytest.mark.parametrize(
    "url",
    ["file:" + "///etc/passwd", "ftp://example.com/x", "gopher://x", "example.com/x", "http://", "http://user:pw@example.com/",
     "http://[::1", "http://a b/", "", "javascript:1", "http://example.com:99999/", "http://exa\nmple.com/", "//x/y"],
)  # fmt: skip
def test_urls_that_are_none(url: str) -> None:
    refused(url, "no URL of a picture|is not known|public")


def test_other_ports() -> None:
    refused("http://example.com:22/", "port 22 is not used", resolver=lambda host, port: ["8.8.8.8"])


# ---- a server of pictures ------------------------------------------------------------------------------------------


class Pictures(BaseHTTPRequestHandler):
    """Answers by path; what it is asked for is noted."""

    asked: list[tuple[str, str]] = []

    def do_GET(self) -> None:
        self.asked.append((self.headers["Host"], self.path))
        where = {
            "/private": "http://inner.example/x",
            "/again": "/picture.png",
            "/loop": "/loop",
            "/file": "file:" + "///x",
        }
        if self.path in where:
            self.send_response(302)
            self.send_header("Location", where[self.path])
            self.end_headers()
            return
        if self.path == "/gone":
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        if self.path == "/slow":
            for _ in range(100):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)
        elif self.path == "/large":
            self.wfile.write(bytes(200_000))
        else:
            self.wfile.write(png())

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, int], list[str]]]:
    """A resolver: outer.example is a local server that counts as public, inner.example a private address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    server.daemon_threads = True
    Pictures.asked = []
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setitem(fetching.PORTS, "http", server.server_port)
    yield lambda host, port: ["127.0.0.1"] if host == "outer.example" else ["127.0.0.2"]
    server.shutdown()
    server.server_close()


def outer(address: str) -> bool:
    return address == "127.0.0.1"


def test_a_picture_is_fetched(pictures: Any) -> None:
    for path in ("picture.png?a=1", "again"):
        data = fetching.fetch(
            f"http://outer.example/{path}", max_bytes=9999, seconds=5, resolver=pictures, public=outer
        )
        assert data == png()
    assert Pictures.asked[0] == ("outer.example", "/picture.png?a=1")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("private", "'inner.example' is not on the public internet"),
        ("loop", "redirects more than 3 times"),
        ("file", "no URL of a picture"),
        ("gone", "answered 404"),
        ("large", "more than 1,000 bytes"),
    ],
)
def test_what_is_not_fetched(path: str, words: str, pictures: Any) -> None:
    refused(f"http://outer.example/{path}", words, resolver=pictures, public=outer)


def test_what_drips_is_cut_off(pictures: Any) -> None:
    began = time.monotonic()
    with pytest.raises(Refusal, match="longer than 0.3 s"):
        fetching.fetch("http://outer.example/slow", max_bytes=1000, seconds=0.3, resolver=pictures, public=outer)
    assert time.monotonic() - began < 2


def test_every_protocol_asks_the_same_check(serve: Serve) -> None:
    client = serve(allow_urls=True, resolver=lambda host, port: ["169.254.169.254"])
    url = "http://metadata.example/x"
    for answer in (
        client.get("/api/remove", params={"url": url}),
        client.post("/v1.0/removebg", data={"image_url": url}),
        client.post("/v1.0/removebg", files={"image_file": ("x", png())}, data={"bg_image_url": url}),
        client.post("/v1/images/edits", json={"images": [{"image_url": url}]}),
    ):
        assert answer.status_code == 403 and "not on the public internet" in answer.text


def test_rembg_by_url(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    from omnialpha.server import state

    monkeypatch.setattr(state, "fetch", lambda url, **limits: png())
    client = serve(allow_urls=True)
    made = client.get("/api/remove", params={"url": "http://outer.example/x", "om": "true"})
    assert made.status_code == 200 and opened(made.content).mode == "L"
