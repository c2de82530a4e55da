"""A chat model behind any endpoint that speaks `/chat/completions`: asked again until it answers in the asked form."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from omnialpha.errors import InputError

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")
Message = dict[str, Any]

LENGTH = 500  # characters that are kept of a text from outside
CONNECT = 10.0  # seconds

# What an HTTP status means; one that is in neither set ends this question with an error.
REFUSED = {301, 302, 303, 307, 308, 401, 402, 403, 404, 405}  # so would every other question be
AGAIN = {408, 409, 425, 429, *range(500, 600)}


class Malformed(ValueError):
    """An answer that is not in the asked form. said: what the model wrote, if it wrote anything."""

    def __init__(self, why: str, said: str = "") -> None:
        super().__init__(why)
        self.said = said


class Unanswered(Exception):
    """A question without an answer after all tries; says what was wrong with the last one."""


@dataclass(frozen=True)
class Endpoint:
    """Where the model is. url: up to `/chat/completions`, or with it. key: sent, never shown or stored.

    timeout: seconds for one try as a whole; tries: a question; pause: seconds before the second try, doubled before
    each further one; patience: the longest wait in seconds that the endpoint may ask for (`Retry-After`).
    """

    url: str
    model: str
    key: str = field(default="", repr=False)
    timeout: float = 120.0
    tries: int = 4
    pause: float = 1.0
    patience: float = 300.0

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            raise InputError(
                "the address of the judge cannot be read: use one such as http://localhost:8000/v1."
            ) from None
        if "@" in parts.netloc or parts.query:
            raise InputError("the address of the judge holds a name, a password or a query: give the key by itself.")
        if not good:
            raise InputError(f"{self.url!r} is no address of a judge: use one such as http://localhost:8000/v1.")
        if not (self.key.isascii() and self.key.isprintable() and " " not in self.key):
            raise InputError("the key has spaces, line ends or letters outside ASCII: store it again.")
        if not (self.tries >= 1 and self.timeout > 0):
            raise InputError(
                f"tries={self.tries}, timeout={self.timeout:g}: use at least 1 try and more than 0 seconds."
            )

    @property
    def host(self) -> str:
        return str(urlsplit(self.url).hostname)

    @property
    def address(self) -> str:
        return self.url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"

    def client(self) -> httpx2.AsyncClient:
        import httpx2

        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        limit = httpx2.Timeout(None, connect=min(CONNECT, self.timeout))  # the whole is limited in `_post`
        return httpx2.AsyncClient(headers=headers, timeout=limit)

    def clean(self, text: str) -> str:
        """Text from outside in one short line, without the key should it be in there."""
        text = text.replace(self.key, "***") if self.key else text
        return " ".join(text.split())[:LENGTH]

    async def complete(
        self, client: httpx2.AsyncClient, messages: Sequence[Message], read: Callable[[str], T], reminder: str
    ) -> T:
        """The answer as `read` takes it. Where that raises Malformed, the reminder is sent after what was said.

        Raises Unanswered; InputError where it is of no use to ask at all.
        """
        import httpx2

        talk, wait = list(messages), 0.0
        for attempt in range(1, self.tries + 1):
            reached, last = True, attempt == self.tries
            try:
                async with asyncio.timeout(self.timeout):
                    response = await client.post(self.address, json=self.body(talk))
                if response.status_code == 200:
                    return read(content(response.content))
                why = f"status {response.status_code}: {self.clean(response.text)}"
                if response.status_code in REFUSED:
                    raise InputError(f"{self.host} refuses: {why}")
                wait = retry_after(response.headers.get("Retry-After", ""))
                last = last or response.status_code not in AGAIN or wait > self.patience
            except Malformed as error:
                why = self.clean(str(error))
                reply = [{"role": "assistant", "content": error.said}, {"role": "user", "content": reminder}]
                talk = [*messages, *(reply if error.said else ())]
            except TimeoutError:
                why = f"no answer within {self.timeout:g} s"
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                why, reached = self.clean(str(error)) or "no connection", False
            except httpx2.HTTPError as error:
                why = f"the connection broke ({type(error).__name__})"
            if last:
                break
            await asyncio.sleep(max(wait, self.pause * 2 ** (attempt - 1) * random.uniform(1, 1.5)))
            wait = 0.0
        if not reached:
            raise InputError(f"{self.host} cannot be reached ({why}): start it, or check the address.")
        raise Unanswered(f"{why} (tries: {attempt})")

    def body(self, messages: Sequence[Message]) -> Message:
        return {"model": self.model, "temperature": 0, "messages": list(messages)}


def content(body: bytes) -> str:
    """The text of a response. Raises Malformed where it is no chat completion with a text."""
    try:
        said = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        raise Malformed("the response is no chat completion") from None
    if not isinstance(said, str):
        raise Malformed("the response holds no text")
    return said


def retry_after(header: str) -> float:
    """Seconds to wait by the header, which states seconds or a date; 0 if it states nothing."""
    if header.strip().isdecimal():
        return float(header)
    try:
        until = parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    return max(0.0, (until.astimezone(UTC) - datetime.now(UTC)).total_seconds())
