"""What the bundled model is worth on held-out scenes, beside simple methods: `python benchmarks/nano_quality.py`.

Everything goes through the pipeline's own path, in batches, at the model's native size. "default" is what a user gets;
"raw" is the model's own picture, without what `fidelity` puts back from the input.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from _bench import BATCH, PSNR_CAP, Bench, Required, matting_table, mean_psnr, number, ours, rivals
from _reader import Reader, requests
from _report import Cell, Table, save
from torch import Tensor

import omnialpha
from omnialpha import fidelity, rgba
from omnialpha.evaluation import heldout, peers
from omnialpha.evaluation.backgrounds import BACKGROUNDS
from omnialpha.evaluation.heldout import HeldOut
from omnialpha.evaluation.matting import measure, soft_iou
from omnialpha.tasks import TASKS, Role

Result = tuple[list[Table], list[Required]]

WORDINGS = {  # what the text says; "" is the caption as training composes it: the name, often colour and place
    "as composed": "", "name and place": "{name} at the {place}", "colour and name": "{color} {name}",
    "name alone": "{name}", "colour alone": "{color} object",
}  # fmt: skip


def autoencoder(bench: Bench) -> Result:
    table = Table(
        "Autoencoder: PSNR in dB over nine backgrounds, and alpha MAD",
        bench.about(),
        {"picture": "", **dict.fromkeys(BACKGROUNDS, ".2f"), "mean": ".2f", "alpha MAD": ".4f"},
        notes=["PSNR of each picture, then the mean over pictures; `mean` is the plain mean of the nine."],
    )
    held = bench.ones
    for name, pictures in (("subject", held.target), ("background", held.background), ("composite", held.composite)):
        again = []
        for batch in pictures.split(BATCH):
            like = [TASKS["text_to_image"].example(prompt="a picture", size=bench.size)] * len(batch)
            cond = bench.model.condition(like)
            again += bench.model.pictures(bench.model.encode_targets([[p] for p in batch], cond), cond)
        back = torch.cat([p.cpu() for p in again]).clamp(0, 1)
        figures = [mean_psnr(rgba.flatten(back, c), rgba.flatten(pictures, c)) for c in BACKGROUNDS.values()]
        mad = float(measure(back[:, 3], pictures[:, 3])["mad"].mean())
        table.rows.append([name, *figures, sum(figures) / len(figures), mad])
    return [table], []


def matting(bench: Bench) -> Result:
    held, others = bench.ones, rivals(bench.ones)
    auto = ours(bench.make(bench.examples("matting_auto", held)), "nothing")
    guided = ours(bench.make(bench.examples("matting_trimap", held, held.trimap)), "trimap")
    guided |= {name: row for name, row in others.items() if row[0] == "trimap"}
    tables = [
        matting_table("Matting, automatic", bench, held, auto | others),
        matting_table("Matting with a trimap", bench, held, guided, unknown=True),
    ]
    anchored = torch.tensor([peers.has_anchors(t) for t in held.trimap])
    note = (
        f"{bench.n - int(anchored.sum())} of {bench.n} trimaps have no sure subject (it is thin or see-through): "
        "closed form has nothing to start from there and answers .5."
    )
    for table in tables:
        table.notes.append(note)
    if bool(anchored.any()):
        title = "Matting with a trimap, only where closed form has something to start from"
        tables.append(matting_table(title, bench, held, guided, unknown=True, keep=anchored))
    mad = [number(row[3]) for row in tables[0].rows]
    half = mad[-1] / 2
    bound = f"<= {half:.4f} (half the best constant's)"
    return tables, [Required("automatic matting, MAD", bound, lambda v: v <= half, mad[0], mad[1])]


def picks(alpha: Tensor, held: HeldOut, keep: Sequence[int]) -> float:
    """Percentage of scenes `keep` whose alpha overlaps the asked object more than the other, in soft IoU."""
    right = soft_iou(alpha, held.target[keep, 3]) > soft_iou(alpha, held.other[keep, 3])
    return 100 * float(right.float().mean())


def text(bench: Bench) -> Result:
    held = bench.twos
    table = Table(
        "Text chooses one of two objects: scenes with the right one, %",
        bench.about(),
        {"wording": "", "for example": "", "n": "d", "nano, default": ".1f", "nano, raw": ".1f", "chance": ".1f"},
        notes=[
            "Right: the alpha's soft IoU with the asked object is above that with the other one.",
            "The back object and the front one are asked for in turn.",
            "Scenes whose objects a wording does not tell apart are left out of its row; the first row has all.",
        ],
    )
    tables = [table]
    for wording, pattern in WORDINGS.items():
        phrases = held.phrases(pattern)
        keep = [b for b, (asked, other) in enumerate(phrases) if not pattern or asked != other]
        if not keep:
            continue
        examples = bench.examples("matting_text", held, prompts=[asked for asked, _ in phrases])
        made = bench.make([examples[b] for b in keep])
        shares = [picks(a[:, 0, 3], held, keep) for a in (made.default, made.raw)]
        table.rows.append([wording, phrases[keep[0]][0], len(keep), *shares, 50.0])
        if not pattern:
            rows = ours(made, "text") | rivals(held)
            tables.insert(0, matting_table("Matting by text, as composed, two objects", bench, held, rows))
    default, raw = (number(v) for v in table.rows[0][3:5])
    what = "text picks the right one of two, as composed, %"
    return tables, [Required(what, ">= 80", lambda v: v >= 80, default, raw)]


def removal(bench: Bench) -> Result:
    held = bench.ones
    true, seen = held.background[:, :3], held.composite[:, :3]
    maps = {Role.ROUGH: held.rough, Role.TRIMAP: held.trimap, Role.ALPHA: held.target[:, 3]}
    table = Table(
        "Removal: PSNR in dB against the true background",
        bench.about("hole (all that the map touches) and whole"),
        {"map": "", "method": "", "hole %": ".1f", "hole, pooled": ".2f", "hole, mean": ".2f", "whole, mean": ".2f"},
        notes=[
            "pooled: over all hole pixels of all pictures, the same ones for all methods.",
            f"mean: PSNR of each picture, at most {PSNR_CAP:.0f}, then the mean.",
            "Without a map nothing says where the hole is; the rough map's is measured.",
        ],
    )

    def row(told: str, name: str, out: Tensor, hole: Tensor) -> list[Cell]:
        inside = rgba.psnr(out, true, hole), mean_psnr(out, true, hole)
        return [told, name, 100 * float(hole.float().mean()), *inside, mean_psnr(out, true)]

    holes = {role: torch.stack([fidelity.hole(m, role) for m in given]) for role, given in maps.items()}
    for role, given in maps.items():
        made, hole = bench.make(bench.examples(f"removal_{role}", held, given)), holes[role]
        telea = torch.stack([peers.telea(p, h) for p, h in zip(seen, hole, strict=True)])
        outputs = {"nano, default": made.default[:, 0, :3], "nano, raw": made.raw[:, 0, :3], "Telea": telea}
        table.rows += [row(str(role), name, out, hole) for name, out in (outputs | {"input unchanged": seen}).items()]
    auto = bench.make(bench.examples("removal_auto", held))
    for name, out in (("nano, default", auto.default), ("nano, raw", auto.raw)):
        table.rows.append(row("none", name, out[:, 0, :3], holes[Role.ROUGH]))
    required = []
    for column, how in ((3, "pooled"), (4, "mean")):
        default, raw, peer = (number(table.rows[i][column]) for i in range(3))  # the rough map's rows
        what = f"removal, rough map, PSNR in the hole above Telea's, {how}, dB"
        required.append(Required(what, "> 0", lambda v: v > 0, default - peer, raw - peer))
    return [table], required


def decomposition(bench: Bench) -> Result:
    held = bench.ones
    made = bench.make(bench.examples("decompose_auto", held))
    idle = torch.stack([held.composite, torch.zeros_like(held.composite)], dim=1)
    truth = torch.stack([held.background, held.target], dim=1)
    layers = ("background RGB L1", "foreground RGB L1", "foreground alpha MAD")
    table = Table(
        "Decomposition into background and foreground, automatic",
        bench.about(),
        {"method": "", **dict.fromkeys(layers, ".4f"), "recomposition, pooled": ".2f", "recomposition, mean": ".2f"},
        notes=[
            "RGB L1 in [0, 1]: of the background over all pixels, of the foreground weighted by its true alpha.",
            f"recomposition: PSNR in dB of the layers together against the input, of a picture at most {PSNR_CAP:.0f}.",
            "The default output takes over what it may from the input, and layers that do nothing recompose perfectly.",
        ],
    )
    for name, made_layers in (("nano, default", made.default), ("nano, raw", made.raw), ("input and nothing", idle)):
        errors = (made_layers[:, :, :3] - truth[:, :, :3]).abs().mean(dim=2)  # (n, 2, H, W)
        alpha = truth[:, 1, 3]
        front = (errors[:, 1] * alpha).sum(dim=(-2, -1)) / alpha.sum(dim=(-2, -1))
        mad = float(measure(made_layers[:, 1, 3], alpha)["mad"].mean())
        again, seen = rgba.recompose(list(made_layers.unbind(1)))[:, :3], held.composite[:, :3]
        color = None if made_layers is idle else float(front.mean())
        table.rows.append(
            [name, float(errors[:, 0].mean()), color, mad, rgba.psnr(again, seen), mean_psnr(again, seen)]
        )
    required = []
    for column, how in ((4, "pooled"), (5, "mean")):
        default, raw = (number(table.rows[i][column]) for i in (0, 1))
        required.append(Required(f"recomposition PSNR, {how}, dB", ">= 22", lambda v: v >= 22, default, raw))
    return [table], required


def generation(bench: Bench) -> Result:
    asked = requests(bench.n, bench.seed + heldout.RECIPE_SEED + 1, bench.size[0])
    reader, task = Reader(bench.seed), TASKS["text_to_image"]
    made = bench.make([task.example(prompt=r.prompt, size=bench.size, wording=i) for i, r in enumerate(asked)])
    table = Table(
        "Text to picture: the prompt read back from the picture, % right",
        bench.about("visible"),
        {"pictures": "", "colour": ".1f", "shape": ".1f", "both": ".1f"},
        notes=[
            f"Prompts name a colour and a shape: {'; '.join(r.prompt for r in asked[:3])}.",
            "Colour: the name that covers most, weighted by alpha. Shape: nearest reference outline, boxes aligned.",
            "The row of true drawings shows the reader's own errors. Chance: always the commonest answer.",
        ],
    )
    drawings = torch.stack([r.drawing for r in asked])
    wanted = [(r.color, r.shape) for r in asked]
    for name, pictures in (
        ("nano, default", made.default[:, 0]),
        ("nano, raw", made.raw[:, 0]),
        ("true drawings", drawings),
    ):
        hits = [(c == wc, s == ws) for (c, s), (wc, ws) in zip(map(reader.read, pictures), wanted, strict=True)]
        shares = [sum(h[0] for h in hits), sum(h[1] for h in hits), sum(all(h) for h in hits)]
        table.rows.append([name, *(100 * share / bench.n for share in shares)])
    answers: list[list[str]] = [[c for c, _ in wanted], [s for _, s in wanted], [f"{c} {s}" for c, s in wanted]]
    table.rows.append(["chance", *(100 * max(words.count(w) for w in words) / bench.n for words in answers)])
    return [table], []


SECTIONS: tuple[Callable[[Bench], Result], ...] = (autoencoder, matting, text, removal, decomposition, generation)


def verdict(bench: Bench, required: Sequence[Required]) -> Table:
    table = Table(
        "Required / measured / met",
        bench.about("as in the tables above"),
        {"figure": "", "required": "", "default": ".4g", "raw": ".4g", "met": ""},
        [[r.what, r.bound, r.default, r.raw, r.passes(r.default) and r.passes(r.raw)] for r in required],
        ["met: by the default output and by the raw one."],
    )
    if bench.n < 100:
        table.notes.append(f"n={bench.n} is too few to quote: use --n 100 or more.")
    return table


def options_of(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Quality of nano on held-out scenes, beside simple methods.")
    parser.add_argument("--model", help="model folder (default: the bundled nano)")
    parser.add_argument(
        "--data",
        type=Path,
        help="folder with foregrounds.jsonl and backgrounds.jsonl: its test split (default: procedural)",
    )
    parser.add_argument("--n", default=128, type=int, help="scenes, and prompts")
    parser.add_argument("--seed", default=0, type=int, help="of the scenes and of the noise")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="also write the tables to this file")
    parser.add_argument("--markdown", type=Path, help="also write the tables to this file")
    options = parser.parse_args(argv)
    for path in (options.json, options.markdown):
        if path and not path.parent.is_dir():
            parser.error(f"{path.parent} is not a folder: make it first.")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    options = options_of(argv)
    start = time.perf_counter()
    try:
        model = omnialpha.load(options.model, device=options.device)
        bench = Bench(model, heldout.open_source(options.data), options.n, options.seed)
    except omnialpha.InputError as error:
        raise SystemExit(f"error: {error}") from None
    tables: list[Table] = []
    required: list[Required] = []
    for section in SECTIONS:
        made, wanted = section(bench)
        for table in made:
            print(table.text(), end="\n\n", flush=True)
        tables += made
        required += wanted
        print(f"{section.__name__}: {time.perf_counter() - start:.0f} s so far", file=sys.stderr, flush=True)
    tables.append(verdict(bench, required))
    print(tables[-1].text())
    settings = {"n": bench.n, "size": bench.size, "seed": bench.seed, "model": model.card.name, "where": bench.where}
    save(tables, settings, options.json, options.markdown)


if __name__ == "__main__":
    main()
