"""The demo's index.html: one page without scripts or outside resources, in light and dark, that works from a file."""

from __future__ import annotations

from collections.abc import Sequence

from omnialpha.demo.demo_runs import GROUNDS, DemoRun
from omnialpha.tasks import TASKS
from omnialpha.templates import render

ON_PHOTOGRAPHS = ("matting", "removal", "decomposition", "completion", "generation")  # what people come for, first
HELD_OUT = "Every task once on layers that nothing was trained on, drawn by this software, beside the true answer."
ABOUT = {
    "generation": "A transparent picture from a text.",
    "completion": "The layer, or the whole picture, that is missing around or behind what is given.",
    "matting": "The subject as a layer with soft alpha: found by itself, or marked by a click, a box, a map or a text.",
    "removal": "The scene without its subject.",
    "decomposition": "The picture as layers, back to front.",
}


def index_page(title: str, facts: dict[str, str], entries: Sequence[DemoRun]) -> str:
    """The page of all entries; `facts` are shown under the title in order."""
    photos, held_out = ([e for e in entries if bool(e.photo) is kind] for kind in (True, False))
    chapters = [(name, name, ABOUT[name], [e for e in photos if e.category == name]) for name in ON_PHOTOGRAPHS]
    chapters.append(("all-tasks", "All tasks, with the truth", HELD_OUT, held_out))
    shown = [chapter for chapter in chapters if chapter[3]]
    return render("demo.html", title=title, facts=facts, chapters=shown, grounds=tuple(GROUNDS), tasks=TASKS)
