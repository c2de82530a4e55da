"""What a fine-tuning run is judged by as it goes on: fixed held-out examples, made, measured and drawn."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from omnialpha import rgba
from omnialpha.data.records.pictures import Size
from omnialpha.data.stream.mixture import Mixture, examples
from omnialpha.data.stream.stream import Stream
from omnialpha.data.synthetic.bank import Bank
from omnialpha.errors import InputError
from omnialpha.io import contact_sheet
from omnialpha.pipeline import OmniAlpha
from omnialpha.tasks import TASKS, Example, Role
from omnialpha.tasks import task as find_task

FOLDER, SHOWN, SIDE = "validation", 3, 144  # where sheets go, examples of a task on one, pixels of a cell
SEED = 1  # of what is drawn, whatever the recipe's

Pictures = Sequence[Tensor]  # of each example its layers (m, 4, H, W)


@dataclass(frozen=True)
class ValidationSet:
    """What nothing trains on: recorded datasets, or scenes composed from a bank."""

    source: Bank | Stream

    def serves(self) -> Collection[str]:
        """The tasks that it has examples of."""
        if isinstance(self.source, Bank):
            return TASKS
        return {name for one in self.source.sources for name in one.tasks if one.total}

    def examples(self, name: str, count: int, size: Size) -> list[Example]:
        """The same ones whenever it is asked, with their truths; no more than there are records."""
        if isinstance(self.source, Bank):
            return examples(TASKS[name], self.source, count, size, torch.Generator().manual_seed(SEED))
        rows = [(one, record) for one in self.source.sources if name in one.tasks for record in one.records]
        made = []
        for number, (one, record) in enumerate(rows[:: max(1, len(rows) // count)][:count]):
            size = one.sizes[number % len(one.sizes)]
            try:
                made.append(record.example(name, torch.Generator().manual_seed(SEED + number), size))
            except InputError:
                if not one.skip:
                    raise
        return made

    def mixture(self, weights: Mapping[str, float], sizes: Sequence[Size], batch: int, seed: int) -> Mixture | Stream:
        """Of the tasks that it has, by these weights."""
        if isinstance(self.source, Bank):
            return Mixture(self.source, weights, sizes, batch, seed)
        known = {name: weight for name, weight in weights.items() if name in self.serves()}
        return replace(self.source, weights=known, batch_size=batch, seed=seed)


def chosen(weights: Mapping[str, float], able: Collection[str], named: Sequence[str] = ()) -> list[str]:
    """The tasks to validate: those named, or of every category the one that is trained most and can be shown.

    able: tasks that the model can do and that there are held-out examples of. InputError where that leaves none.
    """
    for name in named:
        find_task(name)
        if name not in able:
            raise InputError(f"validation_tasks has {name}, of which there is no held-out example: leave it out.")
    best: dict[str, str] = {}
    for name in (name for name in TASKS if weights.get(name, 0) > 0 and name in able):
        category = TASKS[name].category
        if category not in best or weights[name] > weights[best[category]]:
            best[category] = name
    if not best:
        raise InputError(f"no held-out example is of a task that is trained ({', '.join(weights)}): give some records.")
    return list(named) or list(best.values())


@torch.no_grad()
def validate(
    model: OmniAlpha,
    held_out: ValidationSet,
    names: Sequence[str],
    count: int,
    together: int,
    size: Size,
    path: Path,
    see: Callable[[Sequence[Example], Pictures], None] = lambda asked, made: None,
) -> dict[str, float]:
    """Figures of `count` examples of each task, by `run` untouched by `fidelity`, and a sheet of the first ones.

    together: how many are made at a time. path: of the sheet, a PNG. see: is shown what is made of each task.
    """
    figures: dict[str, float] = {}
    cards = []
    for name in names:
        asked = held_out.examples(name, count, size)
        made: list[Tensor] = []
        for first in range(0, len(asked), together):
            part = asked[first : first + together]
            stacks = model.run(part, seed=list(range(first, first + len(part))), raw=True)
            made += [torch.stack([layer.rgba for layer in stack]) for stack in stacks]
        see(asked, made)
        true = [example.true_layers().cpu() for example in asked]
        measure = MEASURES.get(TASKS[name].category)
        own = measure(asked, made, true) if measure else {}
        figures |= {f"val_{name}_{figure}": value for figure, value in own.items()}
        words = ", ".join(f"{figure.replace('_', ' ')} {value:.4g}" for figure, value in own.items())
        for example, got, wanted in list(zip(asked, made, true, strict=True))[:SHOWN]:
            cards.append(_card(example, got, wanted, f"{name.replace('_', ' ')}  {words}"))
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet.write(path, cards)
    return figures


def _card(example: Example, made: Tensor, true: Tensor, title: str) -> contact_sheet.Image.Image:
    """Inputs > what was made | the truth, or, where many answers are right, one of them."""
    other = "true" if TASKS[example.task].category in MEASURES else "one right"
    inputs = [(str(role), picture.cpu()) for role, picture in zip(example.roles, example.inputs, strict=True)]
    outputs = [
        [(f"{what} {role}", layer) for role, layer in zip(example.targets, layers, strict=True)]
        for what, layers in (("made", made), (other, true))
    ]
    return contact_sheet.card(title, [inputs, *outputs], example.instruction, SIDE)


# ---- figures ---------------------------------------------------------------------------------------------------------


def _flat(pictures: Sequence[Tensor]) -> Tensor:
    """Values of pictures of any sizes, one behind the other."""
    return torch.cat([picture.flatten() for picture in pictures])


def matting(asked: Sequence[Example], made: Pictures, true: Pictures) -> dict[str, float]:
    """Mean absolute difference of alpha, and the least that one constant can reach, which is at the median."""
    got, wanted = (_flat([layers[0, 3] for layers in pictures]) for pictures in (made, true))
    constant = (wanted - wanted.median()).abs().mean()
    return {"mad": float((got - wanted).abs().mean()), "constant_mad": float(constant)}


def removal(asked: Sequence[Example], made: Pictures, true: Pictures) -> dict[str, float]:
    """PSNR of the colours in dB, pooled."""
    got, wanted = (_flat([layers[0, :3] for layers in pictures]) for pictures in (made, true))
    return {"psnr": rgba.psnr(got, wanted)}


def decomposition(asked: Sequence[Example], made: Pictures, true: Pictures) -> dict[str, float]:
    """Mean absolute difference of the foregrounds' alpha, and PSNR of what the layers recompose to, premultiplied, to
    the picture that was taken apart, in dB, pooled.
    """
    fronts = [[k for k, role in enumerate(example.targets) if role is Role.FOREGROUND] for example in asked]
    got, wanted = (
        _flat([layers[own, 3] for layers, own in zip(pictures, fronts, strict=True)]) for pictures in (made, true)
    )
    whole = _flat([rgba.premultiply(rgba.recompose(list(layers))) for layers in made])
    given = _flat([rgba.premultiply(example.inputs[0].cpu()) for example in asked])
    return {"alpha_mad": float((got - wanted).abs().mean()), "recomposed_psnr": rgba.psnr(whole, given)}


Measure = Callable[[Sequence[Example], Pictures, Pictures], dict[str, float]]
MEASURES: dict[str, Measure] = {"matting": matting, "removal": removal, "decomposition": decomposition}
