"""A vision-language model as the judge of pairs.

Each pair is asked about in both orders. Answers are kept in VERDICTS_FILE as they come, each under all that was sent
for it, so that a run that was stopped goes on and nothing is asked twice.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnialpha.errors import InputError
from omnialpha.evaluation.judge.endpoint import Endpoint, Malformed, Message, Unanswered
from omnialpha.evaluation.judge.pairs import ASPECTS, SIDES, ComparedPair, RenderedPicture, check_ground
from omnialpha.evaluation.judge.verdicts import TIE, Answer
from omnialpha.evaluation.reports.report import Row, append_row, data_uri, read_rows
from omnialpha.files import sha256

if TYPE_CHECKING:
    import openai

VERDICTS_FILE = "verdicts.jsonl"
CHOICES = ("A", "B", TIE)  # in the words of an answer, where A is what was shown first

ASK = """Two makers that you know nothing about each made a result for the same request: A and B. Compare the two for \
this one point:
{question}

{request}
{ground} Which of them is called A was drawn by lot and means nothing. Where neither is clearly ahead, the verdict is \
a tie. The pictures follow, each after its name."""
FORM = """Answer with one JSON object and nothing else: \
{"reason": "one or two sentences", "verdict": "A" or "B" or "tie"}"""
REMINDER = "That is not the form that was asked for. " + FORM
SHOWS = "Where a result is transparent, {} shows, which is not a part of it."

THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)
FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL)


@dataclass(frozen=True)
class Question:
    """A pair in one order. first: the side that is called A; pictures: by label, in the order they are sent."""

    sample: str
    aspect: str
    first: str
    text: str
    pictures: Sequence[tuple[str, RenderedPicture]] = field(repr=False)

    def key(self, model: str) -> str:
        """The same for the same model, order, words and pictures, and for nothing else."""
        pictures = [(label, shown.digest) for label, shown in self.pictures]
        return sha256(json.dumps([model, SIDES.index(self.first), self.text, FORM, pictures]))

    def messages(self) -> list[Message]:
        parts: list[Message] = [{"type": "text", "text": self.text}]
        for label, shown in self.pictures:
            uri = {"url": data_uri(shown.pixels)}
            parts += [{"type": "text", "text": label}, {"type": "image_url", "image_url": uri}]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": FORM}]}]

    def answer(self, row: Row) -> Answer:
        """A row that was kept, in terms of the sides."""
        sides = {"A": self.first, "B": SIDES[1 - SIDES.index(self.first)], TIE: TIE, "": ""}
        verdict, error = sides[row.get("choice", "")], row.get("error", "")
        return Answer(self.sample, self.aspect, self.first, verdict, reason=row.get("reason", ""), error=error)


def questions(pair: ComparedPair, aspects: Sequence[str], ground: str) -> list[Question]:
    """Each aspect that applies, in both orders; the pictures are read once."""
    asks: list[Question] = []
    asked, (given, made) = pair.request, pair.shown(ground)
    request = f"The request: {asked.instruction}" + (f"\nThe text: {asked.prompt}" if asked.prompt else "")
    seen = SHOWS.format("a grey and white checkerboard" if ground == "checkerboard" else f"plain {ground}")
    for aspect in (name for name in aspects if pair.applies(name)):
        text = ASK.format(question=ASPECTS[aspect].question, request=request, ground=seen)
        for order in (SIDES, SIDES[::-1]):
            pictures = [(f"Given: {shown.label}", shown) for shown in given]
            for letter, side in zip("AB", order, strict=True):
                pictures += [(f"Result {letter}: {shown.label}", shown) for shown in made[side]]
            asks.append(Question(asked.key, aspect, order[0], text, pictures))
    return asks


def count(pairs: Sequence[ComparedPair], aspects: Sequence[str]) -> int:
    """How many questions there are."""
    return sum(2 for pair in pairs for name in aspects if pair.applies(name))


class _Object(list[tuple[str, Any]]):
    """A JSON object with every name it holds, repeated ones too."""


def parse(said: str) -> tuple[str, str]:
    """An answer -> (one of CHOICES, reason). Raises Malformed for all that is not exactly in FORM.

    Thoughts before it and one code fence around it are passed over, as many models cannot leave them out.
    """
    text = said.strip()
    text = THOUGHTS.sub("", text, count=1).strip() if text.startswith("<think>") else text
    fenced = FENCED.fullmatch(text)
    try:
        made = json.loads(fenced[1] if fenced else text, object_pairs_hook=_Object)
    except (ValueError, RecursionError):
        raise Malformed("the answer is not JSON", said) from None
    if not isinstance(made, _Object) or sorted(name for name, _ in made) != ["reason", "verdict"]:
        raise Malformed("the answer is not an object of reason and verdict", said)
    reason, verdict = dict(made)["reason"], dict(made)["verdict"]
    if not isinstance(verdict, str) or verdict not in CHOICES:
        raise Malformed(f"the verdict {verdict!r} is none of {', '.join(CHOICES)}", said)
    if not isinstance(reason, str):
        raise Malformed("the reason is no text", said)
    return verdict, reason


@dataclass(frozen=True)
class Judge:
    """aspects: see `pairs.aspects`; workers: pairs that are under way at once."""

    endpoint: Endpoint
    aspects: Sequence[str]
    ground: str = "checkerboard"
    workers: int = 4

    def __post_init__(self) -> None:
        check_ground(self.ground)
        if self.workers < 1:
            raise InputError(f"workers={self.workers} is out of range: use 1 or more.")

    def ask(
        self,
        pairs: Sequence[ComparedPair],
        folder: Path,
        on_answer: Callable[[Answer, bool], object] = lambda answer, kept: None,
    ) -> list[Answer]:
        """Ask about all pairs; whatever stops it, what was answered stays in the folder.

        Args:
            pairs: what is compared.
            folder: where answers are kept; those that it holds are not asked for again, but errors are.
            on_answer: called with each answer as it comes, and whether it was kept before.

        Returns:
            All answers, in the order of the pairs; an error is an answer too.

        Raises:
            InputError: the endpoint is not there or refuses.
        """
        folder.mkdir(parents=True, exist_ok=True)
        return asyncio.run(self._ask(pairs, folder / VERDICTS_FILE, on_answer))

    async def _ask(
        self, pairs: Sequence[ComparedPair], path: Path, on_answer: Callable[[Answer, bool], object]
    ) -> list[Answer]:
        rows, queue = read_rows(path), iter(enumerate(pairs))
        made: list[list[Answer]] = [[] for _ in pairs]

        async def work() -> None:
            for place, pair in queue:
                for question in await asyncio.to_thread(questions, pair, self.aspects, self.ground):
                    key = question.key(self.endpoint.model)
                    kept = key in rows and not rows[key].get("error")
                    if not kept:
                        rows[key] = {"key": key, **await self._answer(client, question)}
                        append_row(path, rows[key])
                    made[place].append(question.answer(rows[key]))
                    on_answer(made[place][-1], kept)

        async with self.endpoint.client() as client:
            workers = [asyncio.create_task(work()) for _ in range(self.workers)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        return [answer for answers in made for answer in answers]

    async def _answer(self, client: openai.AsyncOpenAI, question: Question) -> Row:
        row: Row = {"sample": question.sample, "aspect": question.aspect, "first": question.first}
        messages = await asyncio.to_thread(question.messages)
        try:
            choice, reason = await self.endpoint.complete(client, messages, parse, REMINDER)
        except Unanswered as error:
            return row | {"error": str(error)}
        return row | {"choice": choice, "reason": self.endpoint.clean(reason)}
