"""A training step beside the published one, on the same weights and samples: `python benchmarks/training.py`.

The published step is re-enacted with diffusers' classes: one sample at a time, its pictures through the 3-D autoencoder
and its instruction through the whole vision-language model in every step, the scheduler copied, the transformer with a
LoRA of rank 256 on attention. Ours takes several samples at once, with pictures and instructions encoded on the fly or
before. Losses have to be equal before anything is timed, and after three steps.
"""

from __future__ import annotations

import argparse
import copy
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common.documents import write_block
from common.released_layout import MID, SMALL, load_ours, load_theirs, write
from common.runs import as_image, picture, placed
from common.tables import Table, save
from common.timing import in_turn, medians, peak_bytes, surroundings
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import CONDITION_IMAGE_SIZE
from peft import LoraConfig
from torch import Tensor

from omnialpha.models.lora import adapters
from omnialpha.models.lora.names import ATTENTION
from omnialpha.models.transformer.model import pack
from omnialpha.pipeline import OmniAlpha
from omnialpha.tasks import TASKS, Example
from omnialpha.training.sft import flow_losses

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
FASTER = 3.0  # required, samples a second
SAME = 1e-3  # relative difference of losses
RANK = 256
WORDS = ("cut out the subject", "a red mug", "the dog that sits on the left, with all of its hair", "remove the sky")

Sample = tuple[Example, Tensor]  # a request and its target (4, H, W)
Step = Callable[[], float]


def samples(size: int, count: int) -> list[Sample]:
    """Referring matting with captions of different lengths."""
    task = TASKS["matting_text"]
    return [
        (task.example(image=picture(size, 2 * k), prompt=WORDS[k % len(WORDS)]), picture(size, 2 * k + 1))
        for k in range(count)
    ]


def draw(latents: Tensor, index: int) -> tuple[Tensor, Tensor]:
    """(t (1,), noise like latents (1, Lt, C)) of sample `index`, the same for both sides."""
    generator = torch.Generator().manual_seed(index)
    return torch.rand(1, generator=generator), torch.randn(latents.shape, generator=generator)


# ---- the published step ---------------------------------------------------------------------------------------------


class Published:
    """Diffusers' classes, used as the published trainer uses them."""

    def __init__(self, folder: Path, lr: float) -> None:
        self.pipeline = load_theirs(folder, torch.device("cpu"), torch.float32)
        self.transformer = self.pipeline.transformer.requires_grad_(False)
        self.transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(ATTENTION)))
        trained = [p for p in self.transformer.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)

    @torch.no_grad()
    def latents(self, x: Tensor) -> Tensor:
        vae = self.pipeline.vae
        mean, std = (torch.tensor(vae.config[n]).view(1, -1, 1, 1) for n in ("latents_mean", "latents_std"))
        return pack((vae.encode((2 * x[None, :3] - 1)[:, :, None]).latent_dist.mode()[:, :, 0] - mean) / std)

    @torch.no_grad()
    def text(self, example: Example) -> tuple[Tensor, Tensor | None]:
        side = int(CONDITION_IMAGE_SIZE**0.5)
        shown = [self.pipeline.image_processor.resize(as_image(p), side, side) for p in example.inputs]
        with placed(self.pipeline.text_encoder):
            return self.pipeline.encode_prompt(prompt=[example.instruction], image=shown, device="cpu")

    def step(self, sample: Sample, index: int, train: bool = True) -> float:
        example, target = sample
        x0, inputs = self.latents(target), [self.latents(p) for p in example.inputs]
        embeds, mask = self.text(example)
        copy.deepcopy(self.pipeline.scheduler)
        t, noise = draw(x0, index)
        x_t = torch.lerp(x0, noise, t.view(-1, 1, 1))
        side = int(x0.shape[1] ** 0.5)
        out = self.transformer(
            hidden_states=torch.cat([x_t, *inputs], dim=1),
            timestep=t,
            encoder_hidden_states=embeds,
            encoder_hidden_states_mask=mask,
            img_shapes=[[(1, side, side)] * (1 + len(inputs))],
            return_dict=False,
        )[0][:, : x0.shape[1]]
        loss = (out - (noise - x0)).square().mean()
        return finish(loss, self.optimizer, train)


def finish(loss: Tensor, optimizer: torch.optim.Optimizer, train: bool) -> float:
    if train:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


# ---- ours -----------------------------------------------------------------------------------------------------------


class Ours:
    """The pipeline's path, as `SFTObjective` walks it."""

    def __init__(self, folder: Path, lr: float) -> None:
        self.model: OmniAlpha = load_ours(folder, torch.device("cpu"), torch.float32)
        self.model.requires_grad_(False)
        self.model.transformer.packs = True
        trained = adapters.add(self.model.transformer, RANK, targets="attention")
        self.optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)

    @torch.no_grad()
    def encode(self, batch: Sequence[Sample]) -> tuple[Any, Tensor]:
        cond = self.model.condition([example for example, _ in batch])
        return cond, self.model.encode_targets([target[None] for _, target in batch], cond)

    def step(self, encoded: tuple[Any, Tensor], indices: Sequence[int], train: bool = True) -> float:
        cond, x0 = encoded
        drawn = [draw(row[None], index) for row, index in zip(x0, indices, strict=True)]
        t, noise = torch.cat([t for t, _ in drawn]), torch.cat([noise for _, noise in drawn])
        velocity = self.model.velocity(torch.lerp(x0, noise, t.view(-1, 1, 1)), t, cond)
        loss = flow_losses(velocity, noise - x0, torch.ones_like(t), cond.positions.target_mask).mean()
        return finish(loss, self.optimizer, train)


def same_adapter(ours: Ours, theirs: Published) -> None:
    """Start both sides from the same LoRA."""
    known = dict(theirs.transformer.named_parameters())
    with torch.no_grad():
        for name, parameter in ours.model.transformer.named_parameters():
            if "lora_" in name:
                parameter.copy_(known[name])


def equality(ours: Ours, theirs: Published, batch: Sequence[Sample], about: str) -> Table:
    table = Table(
        "Equality of the losses",
        about,
        {"losses": "", "published": ".6f", "ours": ".6f", "difference": ".1e", "required": "", "met": ""},
        notes=["Relative difference. A batch of ours against the mean of the published losses one by one."],
    )

    def add(what: str, a: float, b: float) -> None:
        table.rows.append([what, a, b, abs(a - b) / abs(a), f"<= {SAME:g}", abs(a - b) <= SAME * abs(a)])

    one_by_one = [theirs.step(sample, k, train=False) for k, sample in enumerate(batch)]
    together = ours.step(ours.encode(batch), range(len(batch)), train=False)
    add(f"{len(batch)} samples, before training", sum(one_by_one) / len(batch), together)
    for k in range(3):
        a, b = theirs.step(batch[0], k), ours.step(ours.encode(batch[:1]), [k])
        add(f"one sample, step {k + 1}", a, b)
    return table


def speed(ours: Ours, theirs: Published, batch: Sequence[Sample], repeats: int, about: str) -> Table:
    encoded = ours.encode(batch)
    indices = range(len(batch))
    calls: dict[str, Callable[[], Any]] = {
        "published, one sample": lambda: theirs.step(batch[0], 0),
        "ours, encoded on the fly": lambda: ours.step(ours.encode(batch), indices),
        "ours, encoded before": lambda: ours.step(encoded, indices),
        "ours, encoding alone": lambda: ours.encode(batch),
    }
    seconds = medians(in_turn(calls, repeats, torch.device("cpu")))
    table = Table(
        "A training step",
        about,
        {"step": "", "samples": "d", "seconds": ".2f", "samples a second": ".3f", "ratio": ".2f", "required": "",
         "met": ""},
        notes=[f"Medians of {repeats}, in turn. LoRA of rank {RANK} on attention, AdamW, no checkpointing, packed."],
    )  # fmt: skip
    base = 1 / seconds["published, one sample"]
    for name, taken in seconds.items():
        count = 1 if name.startswith("published") else len(batch)
        rate = count / taken
        judged = name == "ours, encoded before"
        row = [f">= {FASTER:g}" if judged else None, rate / base >= FASTER if judged else None]
        table.rows.append([name, count, taken, rate, rate / base, *row])
    return table


def memory(folder: Path, size: int, count: int, threads: int, about: str) -> Table:
    """Peak resident set of a step of each side, in processes of their own."""
    table = Table(
        "Peak memory of a training step",
        about,
        {"side": "", "samples": "d", "MB": "d"},
        notes=["Peak resident set of the process, from its start; MB = 1e6 bytes. Ours: encoded on the fly."],
    )
    for side, samples_ in (("published", 1), ("ours", 1), ("ours", count)):
        task = json.dumps([side, str(folder), size, samples_, threads])
        run = subprocess.run([sys.executable, __file__, "--task", task], capture_output=True, text=True)
        if run.returncode:
            raise SystemExit(run.stderr)
        table.rows.append([side, samples_, int(run.stdout.split()[-1]) // 10**6])
    return table


def task(side: str, folder: str, size: int, count: int, threads: int) -> None:
    torch.set_num_threads(threads)
    batch = samples(size, count)
    if side == "published":
        Published(Path(folder), 1e-4).step(batch[0], 0)
    else:
        ours = Ours(Path(folder), 1e-4)
        ours.step(ours.encode(batch), range(count))
    print(peak_bytes(torch.device("cpu")))


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description="A training step beside the published one.")
    parser.add_argument("--size", type=int, default=256, help="px of a picture")
    parser.add_argument("--batch", type=int, default=4, help="samples of a step of ours")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="a tiny model: no figure to quote")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--document", type=Path, help=f"where tables go (default: {DOCUMENT.name}, none if --quick)")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.task:
        task(*json.loads(options.task))
        return
    torch.set_num_threads(options.threads)
    size, count = (64, 2) if options.quick else (options.size, options.batch)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        parameters = write(folder, SMALL if options.quick else MID, seed=0)
        count_of = sum(parameters.values()) / 1e6
        model = f"{'tiny' if options.quick else 'mid-size'} random model ({count_of:.0f} M parameters)"
        about = f"{model}, n=1 m=1, {size} px, {surroundings(torch.device('cpu'), torch.float32)}, seed 0"
        theirs, ours = Published(folder, 1e-4), Ours(folder, 1e-4)
        same_adapter(ours, theirs)
        batch = samples(size, count)
        tables = [equality(ours, theirs, batch, about)]
        print(tables[0].text(), end="\n\n", flush=True)
        tables.append(speed(ours, theirs, batch, 1 if options.quick else options.repeats, about))
        print(tables[1].text(), end="\n\n", flush=True)
        tables.append(memory(folder, size, count, options.threads, about))
        print(tables[2].text())
    save(tables, {"size": size, "batch": count}, options.json, None)
    document = options.document or (None if options.quick else DOCUMENT)
    if document:
        write_block(document, "training", tables, shlex.join(["python", "benchmarks/training.py", *argv]))


if __name__ == "__main__":
    main()
