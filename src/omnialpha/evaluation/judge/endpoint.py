"""A chat model behind any endpoint that speaks `/chat/completions`, reached by openai's client.

The client retries what may pass (408, 409, 429, 5xx, broken connections, timeouts) with growing pauses, and waits as
long as `Retry-After` says, up to two minutes. Answers that are not in the asked form are asked for again here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from omnialpha.errors import InputError

if TYPE_CHECKING:
    import openai

T = TypeVar("T")
Message = dict[str, Any]

LENGTH = 500  # characters that are kept of a text from outside
CONNECT = 10.0  # seconds
REFUSED = {301, 302, 303, 307, 308, 401, 402, 403, 404, 405}  # statuses that every other question would get too
RETRIES = "x-stainless-retry-count"  # the header in which the client says which attempt a request is
EXAMPLE = "use one such as http://localhost:8000/v1."


class Malformed(ValueError):
    """An answer that is not in the asked form. said: what the model wrote, if it wrote anything."""

    def __init__(self, why: str, said: str = "") -> None:
        super().__init__(why)
        self.said = said


class Unanswered(Exception):
    """A question without an answer after all tries; says what was wrong with the last one.

    malformed: there was an answer, but none in the asked form.
    """

    def __init__(self, why: str, malformed: bool = False) -> None:
        super().__init__(why)
        self.malformed = malformed


@dataclass(frozen=True)
class Endpoint:
    """Where a chat model is, and how it is asked.

    Args:
        url: the address up to `/chat/completions`, or with it.
        model: its name at the endpoint.
        key: sent as a bearer token; never shown or stored.
        timeout: seconds to wait for the endpoint, each try.
        tries: requests for one question, at most.

    Raises:
        InputError: an address, a key or a limit that cannot be used.
    """

    url: str
    model: str
    key: str = field(default="", repr=False)
    timeout: float = 120.0
    tries: int = 4

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            raise InputError(f"the address of the chat model cannot be read: {EXAMPLE}") from None
        if "@" in parts.netloc or parts.query:
            raise InputError("the address of the chat model holds a name, a password or a query: give the key by itself.")
        if not good:
            raise InputError(f"{self.url!r} is no address of a chat model: {EXAMPLE}")
        if not (self.key.isascii() and self.key.isprintable() and " " not in self.key):
            raise InputError("the key has spaces, line ends or letters outside ASCII: store it again.")
        if not (self.tries >= 1 and self.timeout > 0):
            limits = f"tries={self.tries}, timeout={self.timeout:g}"
            raise InputError(f"{limits}: use at least 1 try and more than 0 seconds.")

    def client(self) -> openai.AsyncOpenAI:
        """The client, an asynchronous context manager. Only the key given here is sent, none of the environment's.

        Raises:
            InputError: openai is not installed.
        """
        try:
            import openai
        except ImportError:
            raise InputError("a chat model needs openai's client: `pip install omnialpha[eval]` brings it.") from None
        import httpx2

        limits = httpx2.Timeout(self.timeout, connect=min(CONNECT, self.timeout))
        return openai.AsyncOpenAI(
            api_key=self.key or "none",
            base_url=self.url.rstrip("/").removesuffix("/chat/completions"),
            timeout=limits,
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False, timeout=limits),
        )

    def clean(self, text: str) -> str:
        """Text from outside in one short line, without the key should it be in there."""
        text = text.replace(self.key, "***") if self.key else text
        return " ".join(text.split())[:LENGTH]

    async def complete(
        self,
        client: openai.AsyncOpenAI,
        messages: Sequence[Message],
        read: Callable[[str], T],
        reminder: str,
        watch: Callable[[bytes], None] = lambda body: None,
    ) -> T:
        """Ask until `read` takes the answer. Where that raises Malformed, the reminder is sent after what was said.

        Args:
            client: that of `client()`.
            messages: the question, in the words of the protocol.
            read: the text of an answer -> what is returned.
            reminder: says once more which form is asked for; {why} in it stands for what is wrong.
            watch: called with the body of each response.

        Raises:
            Unanswered: no answer in the asked form after all tries.
            InputError: the endpoint is not there, or would refuse every other question too.
        """
        import openai

        talk: Any = list(messages)
        used, why = 0, ""
        unsent = ("OpenAI-Organization", "OpenAI-Project", *(() if self.key else ("Authorization",)))
        headers = dict.fromkeys(unsent, openai.Omit())
        while used < self.tries:
            asking = client.with_options(max_retries=self.tries - used - 1).chat.completions.with_raw_response
            try:
                response = await asking.create(model=self.model, temperature=0, messages=talk, extra_headers=headers)
                used += 1 + response.retries_taken
                watch(response.content)
                return read(content(response.content))
            except Malformed as error:
                why = self.clean(str(error))
                again = reminder.replace("{why}", why)
                reply = [{"role": "assistant", "content": error.said}, {"role": "user", "content": again}]
                talk = [*messages, *(reply if error.said else ())]
            except (openai.APIStatusError, openai.APIConnectionError) as error:  # timeouts too
                used += 1 + int(error.request.headers.get(RETRIES, 0))
                raise Unanswered(f"{self.failure(error)} (tries: {used})") from None
        raise Unanswered(f"{why} (tries: {used})", malformed=True)

    def failure(self, error: openai.APIStatusError | openai.APIConnectionError) -> str:
        """Why a question has no answer; InputError where no other would have one."""
        import httpx2
        import openai

        host, cause = urlsplit(self.url).hostname, error.__cause__
        if isinstance(error, openai.APIStatusError):
            why = f"status {error.status_code}: {self.clean(error.response.text)}"
            if error.status_code in REFUSED:
                raise InputError(f"{host} refuses: {why}") from None
            return why
        if isinstance(cause, (httpx2.ConnectError, httpx2.ConnectTimeout)):
            why = self.clean(str(cause)) or "no connection"
            raise InputError(f"{host} cannot be reached ({why}): start it, or check its address.") from None
        if isinstance(error, openai.APITimeoutError):
            return f"no answer within {self.timeout:g} s"
        return f"the connection broke ({type(cause).__name__})"


def read_key(variable: str) -> str:
    """The key in an environment variable; "" without one. InputError where it is not set."""
    key = os.environ.get(variable, "").strip() if variable else ""
    if variable and not key:
        raise InputError(f"the environment variable {variable} is not set: set it to the key of the endpoint.")
    return key


def content(body: bytes) -> str:
    """The text of a response. Raises Malformed where it is no chat completion with a text."""
    try:
        said = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        raise Malformed("the response is no chat completion") from None
    if not isinstance(said, str):
        raise Malformed("the response holds no text")
    return said
