"""What a checkpoint reads of an example: our wording, or the one text that it was trained on."""

from dataclasses import replace

import pytest
import torch

from omnialpha.canvas import Grid
from omnialpha.errors import InputError
from omnialpha.models.checkpoints.card import Card
from omnialpha.tasks import TASKS, Example

GRID = Grid(multiple=16, picture_pixels=64 * 64, sample_pixels=64 * 64)
CARD = Card("tiny", "none", GRID, instructions={"matting_auto": "Cut.", "matting_text": "Cut {prompt} out of {it}."})
PICTURE = torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(0))


def asked(task: str, prompt: str | None = None, wording: int = 0) -> Example:
    return TASKS[task].example(image=PICTURE, prompt=prompt, wording=wording)


def test_the_text_of_a_task_replaces_every_wording() -> None:
    for k in range(len(TASKS["matting_auto"].instructions)):
        assert CARD.text(asked("matting_auto", wording=k)) == "Cut."
    for prompt in ("a red mug", "{prompt}", "Cut out a mug."):  # the last reads like a wording of ours
        texts = {CARD.text(asked("matting_text", prompt, k)) for k in range(4)}
        assert texts == {"Cut " + prompt + " out of {it}."}


def test_what_has_no_text_of_its_own_is_read_as_it_is() -> None:
    example = asked("removal_auto", wording=2)
    assert CARD.text(example) == TASKS["removal_auto"].instructions[2]
    assert CARD.text(replace(asked("matting_auto"), instruction="")) == ""  # left out, as training does
    own = replace(asked("matting_auto"), instruction="Keep the cat.", prompt="Keep the cat.")  # of a record
    assert CARD.text(own) == "Keep the cat."


def test_a_task_that_was_not_trained_names_those_that_were_and_a_model_that_can() -> None:
    card = replace(CARD, tasks=["matting_auto", "matting_text"])
    sentence = "tiny cannot do removal_auto, only matting_auto, matting_text: use --model nano, which can."
    with pytest.raises(InputError, match=sentence):
        card.text(asked("removal_auto"))
