"""Rewards from elsewhere, as rows beside `REWARDS`: a function that matches pictures with a text, and HTTP services."""

from __future__ import annotations

import base64
import json
import pkgutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import torch
from torch import Tensor

from omnialpha import rgba
from omnialpha.errors import InputError
from omnialpha.evaluation.datasets.samples import png_of
from omnialpha.files import sha256
from omnialpha.tasks import CATEGORIES, TASKS
from omnialpha.training.reinforcement.rewards import Outcome, Reward

PAUSE = 0.5  # seconds before the second try; each further pause is twice as long
AGAIN = (408, 425, 429)  # statuses that may pass, beside 5xx


@dataclass(frozen=True)
class TextMatch:
    """function: "package.module:function", which takes the pictures over white (G, 3, H, W) and the prompt -> (G,)."""

    function: str

    def reward(self) -> Reward:
        """A row that says something of tasks with a text. InputError where the function cannot be imported."""
        try:
            match: Callable[[Tensor, str], Tensor] = pkgutil.resolve_name(self.function)
            if not callable(match):
                raise ValueError("it is no function")
        except (ImportError, AttributeError, ValueError) as error:
            raise InputError(
                f"text_match.function={self.function!r} cannot be imported ({error}): give package.module:function."
            ) from None

        def measure(out: Outcome) -> Tensor:
            count, prompt = len(out.layers), out.example.prompt
            if TASKS[out.example.task].text is None or not prompt:
                return torch.full((count,), torch.nan)
            found = match(rgba.flatten(rgba.recompose(list(out.layers.unbind(dim=1)))), prompt)
            if not isinstance(found, Tensor) or found.shape != (count,) or not found.isfinite().all():
                raise InputError(f"text_match.function={self.function!r} must return {count} finite numbers, (G,).")
            return found

        return Reward(measure, CATEGORIES, known=False)


@dataclass(frozen=True)
class Service:
    """A reward behind HTTP. A group is one POST of JSON; each picture is a PNG of 8 bits in base64.

    Sent: task, instruction, prompt (or null), roles and inputs, targets, layers (a list for each generation), and
    truths where they are known. Expected: {"scores": [a number in [0, 1] for each generation]}. What was scored is not
    asked again; statuses 408, 425, 429, 5xx and broken connections are tried again after growing pauses.

    Raises:
        InputError: An address or a limit that cannot be used.
    """

    url: str
    timeout: float = 60.0
    tries: int = 5
    categories: tuple[str, ...] = CATEGORIES

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"{self.url!r} is no address of a reward service: use one such as http://localhost:9000/.")
        if not (self.timeout > 0 and self.tries >= 1):
            raise InputError(
                f"timeout={self.timeout:g}, tries={self.tries}: use more than 0 seconds and 1 try or more."
            )
        if unknown := set(self.categories) - set(CATEGORIES):
            raise InputError(f"the category {min(unknown)!r} is not known: use some of {', '.join(CATEGORIES)}.")

    def reward(self) -> Reward:
        """A row that raises InputError where the service is not there, refuses, or answers anything else."""
        scored: dict[str, Tensor] = {}

        def measure(out: Outcome) -> Tensor:
            body = json.dumps(request(out)).encode()
            key = sha256(body)
            if key not in scored:
                scored[key] = torch.tensor(self._read(self._post(body), len(out.layers)))
            return scored[key]

        return Reward(measure, self.categories, known=False)

    def _read(self, answer: bytes, count: int) -> list[float]:
        try:
            scores = json.loads(answer)["scores"]
            good = len(scores) == count and all(type(score) in (int, float) and 0 <= score <= 1 for score in scores)
        except (ValueError, LookupError, TypeError):
            good = False
        if not good:
            text = answer[:80].decode(errors="replace")
            raise InputError(f'{self.url} answers {text!r}: it must be {{"scores": [{count} numbers in [0, 1]]}}.')
        return [float(score) for score in scores]

    def _post(self, body: bytes) -> bytes:
        why = ""
        for number in range(self.tries):
            if number:
                time.sleep(PAUSE * 2 ** (number - 1))
            try:
                asked = Request(self.url, body, {"Content-Type": "application/json"})
                with urlopen(asked, timeout=self.timeout) as response:
                    return response.read()
            except HTTPError as error:
                why = f"status {error.code}"
                if error.code not in AGAIN and error.code < 500:
                    break
            except (OSError, HTTPException) as error:  # URLError and time-outs too
                why = str(getattr(error, "reason", error)) or type(error).__name__
        raise InputError(f"the reward service {self.url} gives no scores ({why}): start it, or check its address.")


def request(out: Outcome) -> dict[str, Any]:
    """A group as a service is told of it."""
    example = out.example
    return {
        "task": example.task,
        "instruction": example.instruction,
        "prompt": example.prompt,
        "roles": list(example.roles),
        "inputs": [_encoded(picture) for picture in example.inputs],
        "targets": list(example.targets),
        "layers": [[_encoded(layer) for layer in layers] for layers in out.layers],
        "truths": [None if truth is None else _encoded(truth) for truth in example.truths],
    }


def _encoded(picture: Tensor) -> str:
    return base64.b64encode(png_of(picture.detach().float().cpu())).decode()
