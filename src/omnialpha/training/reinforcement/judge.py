"""A vision-language model as a reward: it scores every generation alone, then the group side by side in one grid."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from omnialpha.errors import InputError
from omnialpha.evaluation.judge.endpoint import Endpoint, Malformed, Message, Unanswered, read_key
from omnialpha.evaluation.reports.report import data_uri
from omnialpha.files import sha256
from omnialpha.io.contact_sheet import GAP, INK, PAPER, font, thumbnail
from omnialpha.tasks import CATEGORIES, Role
from omnialpha.training.reinforcement.rewards import Outcome, Reward

if TYPE_CHECKING:
    import openai

SIDE, CELL = 512, 192  # pixels of a layer that is shown alone, and in the grid, at most
TOP = 24  # pixels above a cell, for its number
FULL = 10  # the highest score
ABREAST = 4  # questions under way at once

REQUEST = """An image model was asked for {count} picture(s), {targets}, by this request:
{instruction}
{given}"""
ALONE = """Its answer follows, on a checkerboard where it is transparent, which is no part of it. Score it from 0 \
(unusable) to 10 (a professional could not do better): does it do what was asked and nothing else, are edges and \
transparency right, is what was hidden filled in plausibly, and is everything else left as it was?"""
GRID = """{group} answers follow in one picture, each under its number, on a checkerboard where they are transparent, \
which is no part of them. Compare them and score each from 0 (unusable) to 10 (a professional could not do better), so \
that a better one has a higher score."""
FORM = 'Answer with one JSON object and nothing else: {{"scores": [{count} number(s) from 0 to 10]}}'


@dataclass(frozen=True)
class JudgeSettings:
    """url, model: as `omnialpha eval judge` takes them. key_from: the environment variable that holds the key.

    timeout: seconds for an answer; tries: for a question, what is not in the asked form included.
    """

    url: str
    model: str
    key_from: str = ""
    timeout: float = 120.0
    tries: int = 4

    def reward(self) -> Reward:
        """A row: the mean of both scores, in [0, 1], and NaN for a generation of which there is none.

        Raises:
            InputError: The address, the key or a limit cannot be used; from the row, no question was answered.
        """
        endpoint = Endpoint(self.url, self.model, read_key(self.key_from), self.timeout, self.tries)
        known: dict[str, list[float]] = {}
        return Reward(lambda out: asyncio.run(_judge(endpoint, out, known)), CATEGORIES, known=False)


Question = tuple[list[Message], int]  # and how many scores are asked for


async def _judge(endpoint: Endpoint, out: Outcome, known: dict[str, list[float]]) -> Tensor:
    """(G,). known: scores by question."""
    group = len(out.layers)
    asked = [_question(out, ALONE, shown(layers[None], SIDE), 1) for layers in out.layers]
    asked.append(_question(out, GRID.format(group=group), shown(out.layers, CELL), group))
    limit = asyncio.Semaphore(ABREAST)
    async with endpoint.client() as client:
        answers = [_ask(endpoint, client, limit, question, known) for question in asked]
        *alone, grid = await asyncio.gather(*answers)
    if isinstance(grid, Unanswered) and all(isinstance(one, Unanswered) for one in alone):
        raise InputError(f"the judge at {endpoint.url} scores nothing ({grid}): check its model, or leave it out.")
    first = torch.tensor([math.nan if isinstance(one, Unanswered) else one[0] for one in alone])
    return (first if isinstance(grid, Unanswered) else (first + torch.tensor(grid)) / 2) / FULL


async def _ask(
    endpoint: Endpoint,
    client: openai.AsyncOpenAI,
    limit: asyncio.Semaphore,
    question: Question,
    known: dict[str, list[float]],
) -> list[float] | Unanswered:
    messages, count = question
    key = sha256(json.dumps(messages))
    if key not in known:
        try:
            async with limit:
                reminder = "That is not the form that was asked for. " + FORM.format(count=count)
                known[key] = await endpoint.complete(client, messages, _reader(count), reminder)
        except Unanswered as error:
            return error
    return known[key]


def _reader(count: int) -> Callable[[str], list[float]]:
    """Of answers in FORM; thoughts, a code fence and words around it are passed over."""

    def read(said: str) -> list[float]:
        text = said.rpartition("</think>")[2]
        try:
            scores = json.loads(text[text.index("{") : text.rindex("}") + 1])["scores"]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise Malformed("the answer holds no JSON object with scores", said) from None
        if not isinstance(scores, list) or len(scores) != count:
            raise Malformed(f"the answer does not hold {count} score(s)", said)
        if not all(type(score) in (int, float) and 0 <= score <= FULL for score in scores):
            raise Malformed(f"a score is no number from 0 to {FULL}", said)
        return [float(score) for score in scores]

    return read


def _question(out: Outcome, words: str, answers: Image.Image, count: int) -> Question:
    example = out.example
    given = "What it was given follows." if example.inputs else "It was given no picture."
    request = REQUEST.format(
        count=len(example.targets), targets=", ".join(example.names), instruction=example.instruction, given=given
    )
    parts: list[Message] = [{"type": "text", "text": request}]
    for role, picture in zip(example.roles, example.inputs, strict=True):
        if role is Role.HINT:  # nobody gave it
            continue
        parts += [{"type": "text", "text": f"Given: {role}"}, _picture(_small(picture, SIDE))]
    parts += [{"type": "text", "text": words}, _picture(answers)]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": FORM.format(count=count)}]}], count


def _picture(image: Image.Image) -> Message:
    return {"type": "image_url", "image_url": {"url": data_uri(np.asarray(image))}}


def _small(layer: Tensor, side: int) -> Image.Image:
    return thumbnail(layer.detach().float().cpu(), min(side, max(layer.shape[-2:])))


def shown(group: Tensor, side: int) -> Image.Image:
    """Generations (G, m, 4, H, W) in a grid of numbered cells, each with its layers from left to right, back to front.

    side: of a layer, in pixels, at most.
    """
    cells = [[_small(layer, side) for layer in layers] for layers in group]
    layers, (wide, tall) = group.shape[1], cells[0][0].size
    width, height = layers * wide + GAP, tall + TOP + GAP
    columns = math.ceil(math.sqrt(len(cells) / layers))
    made = Image.new("RGB", (columns * width, math.ceil(len(cells) / columns) * height), PAPER)
    draw = ImageDraw.Draw(made)
    for number, row in enumerate(cells):
        top, left = (place * length for place, length in zip(divmod(number, columns), (height, width), strict=True))
        draw.text((left, top), str(number + 1), INK, font(TOP - 4))
        for place, cell in enumerate(row):
            made.paste(cell, (left + place * wide, top + TOP))
    return made
