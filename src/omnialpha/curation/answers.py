"""What an answer of the vision-language model must be like, one reader a question.

A reader takes the text of an answer and returns its fields. It raises Malformed with what is wrong, which the model is
told when it is asked again. Tokens are counted as words and marks, sentences by their ends.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from omnialpha.evaluation.judge.endpoint import Malformed

TOKENS, WORDS, SENTENCES = 64, 50, 2
OPENING = "Replace the background with"
ENGLISH = {
    "a",
    "an",
    "the",
    "of",
    "with",
    "on",
    "in",
    "and",
    "is",
    "are",
    "its",
    "to",
    "at",
    "by",
    "from",
    "under",
    "near",
}
SURROUNDINGS = ("background", "backdrop", "surroundings", "checkerboard", "in front of", "behind it")
FLAT = (
    *("minimalist", "minimal", "clean", "clinical", "soft light", "plain", "solid color", "solid colour", "seamless"),
    *("gradient", "single-color", "single-colour", "monochrome"),
)
COLOURS = "white|black|gr[ae]y|red|orange|yellow|green|blue|purple|violet|pink|brown|beige"


def _words(*patterns: str) -> re.Pattern[str]:
    return re.compile(rf"\b({'|'.join(patterns)})\b", re.IGNORECASE)


PLAIN = _words(rf"({COLOURS}) (background|backdrop|surface|void|studio|wall)")
LIGHT = _words(
    r"\w*light\w*|\w*lit|sun\w*|moon\w*|glow\w*|lamps?|lanterns?|candles?|fire\w*|neon|shadows?|shade|reflect\w*",
    r"dawn|dusk|morning|noon|afternoon|evening|overcast|cloud\w*",
)
PLACES = _words(
    "on|under|beneath|beside|behind|along|above|below|between|near|next to|against|around|across|over|through",
    "at the|in the|left|right|far|distance|foreground",
)
MOTION = _words(
    "stand(s|ing)?|walk(s|ing)?|turn(s|ing)?|rais(e|es|ing)|look(s|ing)? at|runs?|jump(s|ing)?|mov(e|es|ing)",
    "lift(s|ing)?|danc(e|es|ing)|reach(es|ing)?|bend(s|ing)?",
)


def caption(text: str) -> dict[str, Any]:
    """T_fg: {"subject": ..., "caption": ...}."""
    values = _json(text, ("subject", "caption"))
    subject, said = values["subject"], values["caption"]
    if not 1 <= len(subject.split()) <= 5:
        raise Malformed(f"the subject {subject!r} is not one to three words", text)
    _sentence(said, text)
    _without(said, SURROUNDINGS, "the caption speaks of the surroundings", text)
    return {"subject": subject, "caption": said}


def scene(text: str, subjects: Sequence[str] = ()) -> dict[str, Any]:
    """T_comp. subjects: what it must mention."""
    said = " ".join(text.strip().strip('"').split())
    _english(said, text)
    if (words := len(said.split())) > WORDS:
        raise Malformed(f"the description has {words} words, more than {WORDS}", text)
    if (count := len(_sentences(said))) > SENTENCES:
        raise Malformed(f"the description has {count} sentences, more than {SENTENCES}", text)
    for subject in subjects:
        if not mentions(said, subject):
            raise Malformed(f"the description does not mention the {subject}", text)
    return {"scene": said}


def instruction(text: str) -> dict[str, Any]:
    """T_rep: {"Rewritten": ...}."""
    said = _json(text, ("Rewritten",))["Rewritten"]
    if not said.startswith(OPENING):
        raise Malformed(f'the instruction does not begin with "{OPENING}"', text)
    _english(said, text)
    _without(said, FLAT, "the instruction pulls towards a plain background", text)
    for pattern, why in ((PLAIN, "asks for a background of one colour"), (MOTION, "has a verb of motion")):
        if found := pattern.search(said):
            raise Malformed(f"the instruction {why}: {found[0]!r}", text)
    if not LIGHT.search(said):
        raise Malformed("the instruction says nothing of the light", text)
    if len(PLACES.findall(said)) < 2:
        raise Malformed("the instruction names no things and where they are", text)
    return {"instruction": said}


def background(text: str, subjects: Sequence[str] = ()) -> dict[str, Any]:
    """T_bg. subjects: what it must not mention."""
    said = " ".join(text.strip().strip('"').split())
    _sentence(said, text)
    for subject in subjects:
        if mentions(said, subject):
            raise Malformed(f"the caption mentions the {subject}, which is not there", text)
    return {"background_caption": said}


def mentions(text: str, subject: str) -> bool:
    """Whether a text names a subject, in the singular or the plural, by its noun: "mug" of "blue mug of tea"."""
    noun = re.split(r"\s+(?:of|with|in|on)\s+", subject.strip())[0].split()[-1:]
    forms = {noun[0], noun[0].removesuffix("s"), noun[0].removesuffix("es")} if noun else set()
    return bool(_words(rf"({'|'.join(map(re.escape, sorted(forms)))})(e?s)?").search(text)) if forms else False


def _json(text: str, keys: Sequence[str]) -> dict[str, str]:
    """The JSON object in an answer, in a fence or not, with text under each key."""
    inside = re.search(r"\{.*\}", text, re.DOTALL)
    try:
        values = json.loads(inside[0] if inside else "")
        made = {key: " ".join(values[key].split()) for key in keys}
    except (ValueError, LookupError, TypeError, AttributeError):
        raise Malformed(f"the answer is no JSON object with text under {' and '.join(keys)}", text) from None
    if empty := [key for key, value in made.items() if not value]:
        raise Malformed(f"{empty[0]} is empty", text)
    return made


def _sentences(text: str) -> list[str]:
    return [part for part in re.split(r"[.!?]+[\"')]*(?:\s+|$)", text) if part.strip()]


def _sentence(said: str, text: str) -> None:
    """Malformed unless it is one English sentence of fewer than 64 tokens."""
    _english(said, text)
    if (count := len(_sentences(said))) != 1:
        raise Malformed(f"there are {count} sentences, not one", text)
    if (tokens := len(re.findall(r"\w+|[^\w\s]", said))) >= TOKENS:
        raise Malformed(f"the sentence has {tokens} tokens, not fewer than {TOKENS}", text)


def _english(said: str, text: str) -> None:
    letters = [c for c in said if c.isalpha()]
    foreign = sum(not c.isascii() for c in letters)
    if not letters or foreign > len(letters) / 10 or not ENGLISH & {word.lower() for word in re.findall(r"\w+", said)}:
        raise Malformed("the text is not English", text)


def _without(said: str, words: Sequence[str], why: str, text: str) -> None:
    if found := re.search(rf"\b({'|'.join(map(re.escape, words))})\b", said, re.IGNORECASE):
        raise Malformed(f"{why}: {found[0]!r}", text)
