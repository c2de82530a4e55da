"""Pictures that a request names by URL, from public addresses alone.

A name is resolved once, every address that it has is checked, and the connection goes to a checked address, so that no
second look-up can lead elsewhere. A redirect is a new URL with the same checks.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from urllib.parse import SplitResult, urljoin, urlsplit

from omnialpha.server.refusals import Refusal

PORTS = {"http": 80, "https": 443}  # and no others: nothing but web servers is asked
REDIRECTS = 3
BLOCK = 1 << 16
Resolver = Callable[[str, int], list[str]]


def resolve_host(host: str, port: int) -> list[str]:
    """The addresses of a name, by the system."""
    return [str(row[4][0]) for row in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def is_public(address: str) -> bool:
    """Whether an address is on the public internet, and so is the IPv4 address that an IPv6 address carries."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    inner: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = [ip]
    if isinstance(ip, ipaddress.IPv6Address):
        inner += [one for one in (ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())) if one]
        if ip in ipaddress.ip_network("64:ff9b::/96"):  # NAT64
            inner.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
    return all(one.is_global and not one.is_multicast and not one.is_reserved for one in inner[1:] or inner)


def fetch(
    url: str,
    *,
    max_bytes: int,
    seconds: float,
    resolver: Resolver = resolve_host,
    public: Callable[[str], bool] = is_public,
) -> bytes:
    """The bytes at a URL.

    Args:
        url: http or https.
        max_bytes, seconds: Of all of it, redirects included.
        resolver, public: For tests.

    Raises:
        Refusal: It is no such URL, leads to an address that is not public, or cannot be fetched within the limits.
    """
    deadline = monotonic() + seconds
    for _ in range(REDIRECTS + 1):
        parts = _check_url(url)
        address = _address(parts, resolver, public)
        try:
            with _answer(parts, address, deadline) as answer:
                target = answer.getheader("Location")
                if answer.status in (301, 302, 303, 307, 308) and target:
                    url = urljoin(url, target)
                    continue
                if answer.status != 200:
                    raise Refusal("bad_request", f"the picture's URL answered {answer.status}: check it.")
                return _read(answer, max_bytes, deadline)
        except (OSError, http.client.HTTPException) as error:
            late = monotonic() >= deadline
            reason = f"took longer than {seconds:g} s" if late else type(error).__name__
            raise Refusal(
                "bad_request", f"the picture's URL could not be fetched ({reason}): send the file."
            ) from error
    raise Refusal("bad_request", f"the picture's URL redirects more than {REDIRECTS} times: give the last one.")


def _check_url(url: str) -> SplitResult:
    try:
        parts = urlsplit(url.strip())
        port = parts.port or PORTS.get(parts.scheme)
        host = (parts.hostname or "").encode("idna" if not (parts.hostname or "").isascii() else "ascii").decode()
    except ValueError:  # UnicodeError is one
        parts, port, host = SplitResult("", "", "", "", ""), None, ""
    if parts.scheme not in PORTS or not host or parts.username or parts.password or any(c <= " " for c in url.strip()):
        raise Refusal("bad_request", f"{url[:80]!r} is no URL of a picture: use http or https, without a user name.")
    if port != PORTS[parts.scheme]:
        raise Refusal(
            "bad_request", f"port {port} is not used to fetch pictures: use {PORTS[parts.scheme]}, or send the file."
        )
    return parts


def _address(parts: SplitResult, resolver: Resolver, public: Callable[[str], bool]) -> str:
    """The address to connect to; all that the name has must be public."""
    host = parts.hostname or ""
    try:
        addresses = resolver(host, PORTS[parts.scheme])
    except (OSError, UnicodeError):
        addresses = []
    if not addresses:
        raise Refusal("bad_request", f"the host {host[:80]!r} of the picture's URL is not known: check it.")
    if not all(map(public, addresses)):
        raise Refusal("forbidden", f"the host {host[:80]!r} is not on the public internet: send the file instead.")
    return addresses[0]


@contextmanager
def _answer(parts: SplitResult, address: str, deadline: float) -> Iterator[http.client.HTTPResponse]:
    """The answer of the server at an address to a GET; its socket is closed at the deadline, whatever it drips."""
    left = max(deadline - monotonic(), 0.001)
    raw = socket.create_connection((address, PORTS[parts.scheme]), timeout=left)
    timer = threading.Timer(max(deadline - monotonic(), 0.001), _shut, [raw])
    timer.daemon = True
    timer.start()
    try:
        connection = http.client.HTTPConnection(parts.hostname or "", timeout=left)
        if parts.scheme == "https":
            raw = ssl.create_default_context().wrap_socket(raw, server_hostname=parts.hostname)
        connection.sock = raw
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers={"Accept": "image/*", "User-Agent": "omnialpha"})
        answer = connection.getresponse()
        with answer:
            yield answer
    finally:
        timer.cancel()
        raw.close()


def _shut(raw: socket.socket) -> None:
    # of the descriptor: TLS has taken it over from the socket that was given
    try:
        raw.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


def _read(answer: http.client.HTTPResponse, max_bytes: int, deadline: float) -> bytes:
    data = bytearray()
    while block := answer.read1(BLOCK):
        data += block
        if len(data) > max_bytes:
            raise Refusal("too_large", f"the picture at the URL has more than {max_bytes:,} bytes: make it smaller.")
    if monotonic() >= deadline:  # the end may be that of the socket
        raise TimeoutError
    if answer.length:  # None or 0 where all of it came
        raise OSError("cut off")
    return bytes(data)
