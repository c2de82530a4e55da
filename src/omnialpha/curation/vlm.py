"""A vision-language model, and models that edit pictures, behind servers that speak OpenAI's protocol.

Any number of threads ask at once; one loop in a thread of its own sends what they ask.
"""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from omnialpha import rgba
from omnialpha.curation.candidate import Rejected
from omnialpha.curation.prompts import REMINDER
from omnialpha.errors import InputError
from omnialpha.evaluation.datasets.samples import png_of
from omnialpha.evaluation.judge.endpoint import Endpoint, Unanswered, read_key
from omnialpha.io import read_image

if TYPE_CHECKING:
    import openai

T = TypeVar("T")
GREY = (0.5, 0.5, 0.5)  # what a transparent picture is shown on


@dataclass(frozen=True)
class VLMSettings:
    """Where a model is served, how it is asked, and what that costs.

    url, model: the address up to /chat/completions or /images/edits, and the model's name there. key: the environment
    variable that holds the key. timeout: seconds. tries: requests for one answer. parallel: questions at once.
    per_minute: questions a minute, 0: as many as there are. side: pixels of a picture that is shown, at most. price_in,
    price_out: of a million tokens, for the estimate; price: of an edited picture.
    """

    url: str = ""
    model: str = ""
    key: str = ""
    timeout: float = 120.0
    tries: int = 4
    parallel: int = 8
    per_minute: float = 0.0
    side: int = 1024
    price_in: float = 0.0
    price_out: float = 0.0
    price: float = 0.0

    def __post_init__(self) -> None:
        if self.parallel < 1 or self.per_minute < 0 or self.side < 16:
            limits = f"parallel={self.parallel}, per_minute={self.per_minute:g}, side={self.side}"
            raise InputError(f"{limits}: use 1 or more, 0 or more, and 16 pixels or more.")


class Server:
    """What `VLMSettings` name.

    Raises:
        InputError: The address or a limit cannot be used, or the key is not set.
    """

    def __init__(self, settings: VLMSettings) -> None:
        self.settings = settings
        self.endpoint = Endpoint(settings.url, settings.model, read_key(settings.key), settings.timeout, settings.tries)
        self.turns = threading.BoundedSemaphore(settings.parallel)
        self.lock, self.next = threading.Lock(), 0.0

    @cached_property
    def loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        return loop

    @cached_property
    def client(self) -> openai.AsyncOpenAI:
        return self.endpoint.client()

    def ask(self, text: str, pictures: Sequence[Tensor], read: Callable[[str], T], usage: dict[str, int]) -> T:
        """The answer to a question about pictures (4, H, W), as `read` returns it, see `Endpoint.complete`.

        usage: tokens are added to it.

        Raises:
            Rejected: No answer can be used.
            Unanswered: The server did not answer.
            InputError: It would not answer any other question.
        """
        parts = [{"type": "image_url", "image_url": {"url": self._shown(picture)}} for picture in pictures]
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]

        def watch(body: bytes) -> None:
            used = json.loads(body).get("usage") or {}
            for name in ("prompt_tokens", "completion_tokens"):
                usage[name] = usage.get(name, 0) + int(used.get(name) or 0)

        try:
            return self._send(lambda: self.endpoint.complete(self.client, messages, read, REMINDER, watch))
        except Unanswered as error:
            if error.malformed:
                raise Rejected(f"no usable answer: {error}") from None
            raise

    def edit(self, picture: Tensor, text: str, hole: Tensor | None = None) -> Tensor:
        """A picture (4, H, W) edited as a text says, opaque, as the server returns it.

        hole: (H, W), above .5 where it may change, which is sent as a mask that is transparent there.

        Raises:
            Unanswered: The server did not answer with a picture.
            InputError: It would not edit any other picture.
        """
        import openai

        files: dict[str, Any] = {"image": ("image.png", png_of(picture), "image/png")}
        if hole is not None:
            mask = rgba.opaque(picture[:3])
            mask[3] = (hole <= 0.5).to(mask.dtype)
            files["mask"] = ("mask.png", png_of(mask), "image/png")
        asking = self.client.with_options(max_retries=self.settings.tries - 1).images
        try:
            made = self._send(lambda: asking.edit(**files, prompt=text, model=self.settings.model))
            file = BytesIO(base64.b64decode(made.data[0].b64_json or "", validate=True))
            file.name = "the server's picture"  # type: ignore[misc]
            return rgba.opaque(rgba.flatten(read_image(file).rgba))
        except (openai.APIStatusError, openai.APIConnectionError) as error:
            raise Unanswered(self.endpoint.failure(error)) from None
        except (InputError, ValueError, LookupError, TypeError) as error:
            raise Unanswered(f"the answer holds no picture ({error})") from None

    def _send(self, question: Callable[[], Coroutine[Any, Any, T]]) -> T:
        with self.turns:
            self._wait()
            return asyncio.run_coroutine_threadsafe(question(), self.loop).result()

    def _wait(self) -> None:
        """Until it is this question's turn, by the rate."""
        if not self.settings.per_minute:
            return
        with self.lock:
            turn = max(self.next, time.monotonic())
            self.next = turn + 60 / self.settings.per_minute
        time.sleep(max(0.0, turn - time.monotonic()))

    def _shown(self, picture: Tensor) -> str:
        """A data URI, on grey, no larger than `side`."""
        factor = self.settings.side / max(picture.shape[-2:])
        shown = rgba.scale(picture, factor) if factor < 1 else picture
        return "data:image/png;base64," + base64.b64encode(png_of(rgba.flatten(shown, GREY))).decode()
