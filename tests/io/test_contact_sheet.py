"""Contact sheets: cells on their ground, words in full, every picture where its label is."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from omnialpha.io import contact_sheet


@pytest.mark.parametrize(("ground", "grey"), [("black", 0), ("white", 255)])
def test_thumbnails_show_a_clear_picture_as_its_ground(ground: str, grey: int) -> None:
    cell = np.asarray(contact_sheet.thumbnail(torch.zeros(4, 30, 60), 20, ground))
    assert cell.shape == (10, 20, 3)
    assert (cell[1:-1, 1:-1] == grey).all()


def test_words_are_wrapped_between_and_never_lost() -> None:
    lines = contact_sheet.wrap("one two three four five", 60, 15)
    assert len(lines) > 1 and " ".join(lines) == "one two three four five"
    assert contact_sheet.wrap("", 60, 15) == []


def test_a_card_has_every_picture_in_order(tmp_path: Path) -> None:
    """Cells of one colour each, found again from left to right, in as many columns as there are pictures."""
    colours = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
    pictures = [torch.cat([torch.tensor(c).view(3, 1, 1).expand(3, 20, 30), torch.ones(1, 20, 30)]) for c in colours]
    groups = [[("in", pictures[0])], [("made", pictures[1])], [("true", pictures[2])]]
    cards = [contact_sheet.card("title", groups, "words below", side=60) for _ in range(2)]
    contact_sheet.write(tmp_path / "sheet.png", cards)
    pixels = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert pixels.shape[:2] == (2 * cards[0].height, contact_sheet.WIDE)
    starts = []
    for colour in colours:
        rows, columns = np.nonzero((pixels == np.array(colour) * 255).all(-1))
        assert len(rows) == 2 * 58 * 38  # but for the frame, on both cards
        starts.append(columns.min())
    assert starts == sorted(starts) and starts[1] - starts[0] > 60


def test_a_card_without_inputs_and_with_many_words_is_whole() -> None:
    picture = torch.ones(4, 10, 10)
    short, long = (contact_sheet.card("t", [[], [("made", picture)]], "word " * n, side=40) for n in (1, 200))
    assert short.width == contact_sheet.WIDE and long.height > short.height + 5 * 20
