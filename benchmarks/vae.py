"""The autoencoder beside diffusers', with the same weights and pictures in one process: `python benchmarks/vae.py`.

The released shape with random weights and four channels, on the CPU in float32 and on a GPU in bfloat16. Outputs are
compared before they are timed. Then what batches in pieces and tiles save, and what tiles cost in quality, on the
bundled VAE. What is printed goes into docs/performance.md, row by row: a run that is cut off leaves what it has.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from common.documents import grown, write_block
from common.tables import Cell, Table, save
from common.timing import in_turn, medians, surroundings
from torch import Tensor

from omnialpha.models.vae import winograd

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
GOALS = {"cpu": {"encode": 3.0, "decode": 5.0}, "cuda": {"encode": 2.0, "decode": 2.0}}  # times diffusers' speed
TYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}
TOLERANCE = {"cpu": 1e-5, "cuda": 2e-2}  # of the root mean square difference, relative
PICTURES = 3  # in a batch: one input and two targets
HOW = ("together", "one by one", "in tiles")
TILES = ((128, 32), (192, 48), (256, 64))  # pixels: tile and overlap, of 384 px pictures

Call = Callable[[], Tensor]


def stock_vae(device: str) -> Any:
    from diffusers import AutoencoderKLQwenImage

    torch.manual_seed(0)
    vae = AutoencoderKLQwenImage(input_channels=4).eval().requires_grad_(False)
    return torch.nn.Module.to(vae, device, TYPES[device])


def own_vae(stock: Any, device: str) -> Any:
    """Ours with the weights of `stock`."""
    from omnialpha.models.vae.alphavae import AlphaVAE
    from omnialpha.models.vae.autoencoder import build
    from omnialpha.models.vae.folding import fold

    latents = {name: list(stock.config[name]) for name in ("latents_mean", "latents_std")}
    vae = build(lambda: AlphaVAE(**latents), fold(stock.state_dict()), TYPES[device], "the benchmark")
    return torch.nn.Module.to(vae.requires_grad_(False), device)


def calls(vae: Any, size: int, batch: int, device: str) -> dict[str, Call]:
    """encode: pictures -> normalised latents; decode: the way back, to [0, 1]. Of ours and of diffusers' alike."""
    generator, dtype = torch.Generator().manual_seed(1), TYPES[device]
    x = torch.rand(batch, 4, size, size, generator=generator).to(device)
    z = torch.randn(batch, 16, size // 8, size // 8, generator=generator).to(device)
    if hasattr(vae, "statistics"):
        return {"encode": lambda: vae.encode(x), "decode": lambda: vae.decode(z)}
    mean, std = (torch.tensor(vae.config[n], device=device).view(1, 16, 1, 1) for n in ("latents_mean", "latents_std"))

    def encode() -> Tensor:
        return (vae.encode((2 * x - 1).to(dtype)[:, :, None]).latent_dist.mode()[:, :, 0] - mean) / std

    def decode() -> Tensor:
        return (vae.decode((z * std + mean).to(dtype)[:, :, None]).sample[:, :, 0].float() + 1) / 2

    return {"encode": encode, "decode": decode}


def set_how(vae: Any, how: str, size: int) -> Any:
    """Ours all together, a picture at a time, or moreover in tiles of half the side."""
    from omnialpha.models.vae.tiling import Tiling

    vae.max_batch_pixels = None if how == "together" else size**2
    vae.tiling = Tiling(size // 2, size // 8) if how == "in tiles" else None
    return vae


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).square().mean().sqrt() / b.double().square().mean().sqrt())


# ---- memory ---------------------------------------------------------------------------------------------------------


def resident() -> dict[str, int]:
    """MiB of this process: now (VmRSS) and at most (VmHWM). Empty where the system does not tell."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.is_file() else []
    return {line.split(":")[0]: int(line.split()[1]) // 1024 for line in lines if line.startswith(("VmRSS", "VmHWM"))}


def rise(call: Call, device: str) -> int | None:
    """MiB that a call needs at most beyond what was held before it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) // 2**20
    if not resident():
        return None
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = resident()["VmRSS"]
    call()
    return resident()["VmHWM"] - before


def memory(vae: Any, how: str, size: int, batch: int, device: str) -> dict[str, int | None]:
    """`rise` of either direction. On the CPU in a process of its own, which holds nothing else."""
    if device == "cuda":
        return {what: rise(call, device) for what, call in calls(vae, size, batch, device).items()}
    task = json.dumps([how, size, batch, torch.get_num_threads()])
    run = subprocess.run([sys.executable, __file__, "--task", task], capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(run.stderr)
    return json.loads(run.stdout.splitlines()[-1])


def task(how: str, size: int, batch: int, threads: int) -> dict[str, int | None]:
    """What the process of `memory` does."""
    torch.set_num_threads(threads)
    vae = stock_vae("cpu")
    if how in HOW:
        vae = set_how(own_vae(vae, "cpu"), how, size)
    for call in calls(vae, 64, 1, "cpu").values():
        call()
    return {what: rise(call, "cpu") for what, call in calls(vae, size, batch, "cpu").items()}


# ---- tables ---------------------------------------------------------------------------------------------------------


def side_by_side(stock: Any, own: Any, sizes: Sequence[int], repeats: int, device: str) -> Iterator[Table]:
    """One table, again after each size."""
    where = "torch.cuda.max_memory_allocated" if device == "cuda" else "resident set, in processes of their own"
    table = Table(
        "The autoencoder beside diffusers', one RGBA picture",
        f"released shape, random weights, seed 0, {surroundings(torch.device(device), TYPES[device])}",
        {"what": "", "px": "d", "n": "d", "diffusers, s": ".3f", "ours, s": ".3f", "ratio": ".2f", "required": "",
         "met": "", "difference": ".1e", "diffusers, MiB": "d", "ours, MiB": "d"},
        notes=[
            "Seconds: medians of n, in turns, after one unmeasured call. difference: of the outputs, root mean square, "
            "relative.",
            f"MiB: the most that a call needs beyond weights and inputs ({where}).",
        ],
    )  # fmt: skip
    for size in sizes:
        mine, theirs = calls(own, size, 1, device), calls(stock, size, 1, device)
        use = [memory(vae, how, size, 1, device) for vae, how in ((stock, "diffusers"), (own, HOW[0]))]
        for what, goal in GOALS[device].items():
            difference = relative(mine[what](), theirs[what]())
            if not difference <= TOLERANCE[device]:
                raise SystemExit(
                    f"{what} at {size} px differs from diffusers' by {difference:.1e}: no use in timing it."
                )
            pair = {"diffusers": theirs[what], "ours": mine[what]}
            slow, fast = medians(in_turn(pair, repeats, torch.device(device), warm=0)).values()
            ratio, used = slow / fast, [side[what] for side in use]
            table.rows.append(
                [what, size, repeats, slow, fast, ratio, f">= {goal:g}", ratio >= goal, difference, *used]
            )
        yield table


def batches(own: Any, sizes: Sequence[int], repeats: int, device: str) -> Iterator[Table]:
    table = Table(
        f"The autoencoder with {PICTURES} pictures",
        f"released shape, random weights, seed 0, {surroundings(torch.device(device), TYPES[device])}",
        {"what": "", "px": "d", "n": "d", "how": "", "seconds": ".3f", "MiB": "d", "difference": ".1e"},
        notes=[
            "Seconds: medians of n. One by one: max_batch_pixels. In tiles: of half the side, a quarter of it shared.",
            "difference: to all together. Tiles are approximate; random weights do not tell what they cost in quality.",
        ],
    )
    for size in sizes:
        run = calls(own, size, PICTURES, device)
        wanted = {what: call() for what, call in run.items()}
        for how in HOW:
            set_how(own, how, size)
            used = memory(own, how, size, PICTURES, device)
            made: dict[str, Tensor] = {}
            keep = {what: partial(lambda what: made.update({what: run[what]()}), what) for what in run}  # noqa: B023
            seconds = medians(in_turn(keep, repeats, torch.device(device), warm=0))
            for what in run:
                row = [what, size, repeats, how, seconds[what], used[what], relative(made[what], wanted[what])]
                table.rows.append(row)
        set_how(own, HOW[0], size)
    yield table


def tile_quality(n: int, side: int = 384) -> Iterator[Table]:
    from omnialpha import rgba
    from omnialpha.data.synthetic import layers as synthetic
    from omnialpha.models.checkpoints.folders import BUNDLED
    from omnialpha.models.vae.alphavae import load_vae
    from omnialpha.models.vae.tiling import Tiling

    vae = load_vae(BUNDLED["nano"] / "vae").requires_grad_(False)
    layers = torch.from_numpy(synthetic.bank(n, side, seed=5)[0]).permute(0, 3, 1, 2).float() / 255
    whole = [(z := vae.encode(x[None]), vae.decode(z)) for x in layers]
    table = Table(
        "What tiles cost in quality",
        f"n={n} procedural layers of {side}x{side} px, seed 5, nano's autoencoder, premultiplied, region: whole",
        {"tile": "", "PSNR to untiled": ".2f", "worst": ".2f", "PSNR to the layer": ".2f"},
        notes=["dB, means. To untiled: of the same latents, decoded. To the layer: encoded and decoded in tiles."],
    )
    for sides in (None, *TILES):
        vae.tiling = Tiling(*sides) if sides else None
        near = [rgba.psnr(rgba.premultiply(vae.decode(z)), rgba.premultiply(y)) for z, y in whole]
        back = [rgba.psnr(rgba.premultiply(vae.decode(vae.encode(x[None]))[0]), rgba.premultiply(x)) for x in layers]
        row: list[Cell] = [v if math.isfinite(v) else "same" for v in (statistics.mean(near), min(near))]
        table.rows.append([f"{sides[0]} px, {sides[1]} shared" if sides else "none", *row, statistics.mean(back)])
    yield table


def without(call: Call) -> Call:
    """The call with torch's own convolutions."""

    def run() -> Tensor:
        with mock.patch.object(winograd, "convolve", lambda *given, **settings: None):
            return call()

    return run


def winograd_table(sizes: Sequence[int], repeats: int) -> Iterator[Table]:
    """What Winograd's transforms save on a CPU: nano's whole run, and the released shape; again after each row."""
    import omnialpha
    from omnialpha.tasks import TASKS

    model = omnialpha.load(device="cpu")
    example = TASKS["matting_auto"].example(
        composite=torch.rand(4, 300, 400, generator=torch.Generator().manual_seed(0))
    )
    rows: dict[str, Call] = {"nano, a whole matte of 400 x 300 px": lambda: model.run([example])}
    own = own_vae(stock_vae("cpu"), "cpu")
    for size in sizes:
        rows |= {f"released shape, {what}, {size} px": call for what, call in calls(own, size, 1, "cpu").items()}
    table = Table(
        "Winograd's transforms on a CPU, in turn with torch's convolutions",
        f"random weights of the released shape, seed 0, {surroundings(torch.device('cpu'), torch.float32)}",
        {"what": "", "n": "d", "with, s": ".2f", "without, s": ".2f", "ratio": ".2f",
         "with, processor s": ".2f", "without, processor s": ".2f", "processor ratio": ".2f"},
        notes=["Medians of n after one unmeasured call. Processor: of all threads of this program."],
    )  # fmt: skip
    for what, call in rows.items():
        times: dict[str, list[tuple[float, float]]] = {"with": [], "without": []}
        for number in range(repeats + 1):
            for name, one in (("with", call), ("without", without(call))):
                began = time.perf_counter(), time.process_time()
                one()
                if number:
                    times[name].append((time.perf_counter() - began[0], time.process_time() - began[1]))
        (fast, light), (slow, heavy) = (
            [statistics.median(v) for v in zip(*rows, strict=True)] for rows in times.values()
        )
        table.rows.append([what, repeats, fast, slow, slow / fast, light, heavy, heavy / light])
        yield table


def measure(devices: Sequence[str], sizes: Sequence[int], repeats: int, pictures: int) -> Iterator[Table]:
    """Tables as soon as they are there, and again when they have more rows."""
    for device in devices:
        stock = stock_vae(device)
        own = own_vae(stock, device)
        yield from side_by_side(stock, own, sizes, repeats, device)
        yield from batches(own, sizes[:1], repeats, device)  # how they compare depends little on the size
    yield from tile_quality(pictures)


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description="The autoencoder beside diffusers': seconds, memory, equal output.")
    parser.add_argument("--sizes", default="256,512", help="px of a picture, with commas (also: 1024)")
    parser.add_argument("--repeats", default=3, type=int)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works: no figure to quote")
    parser.add_argument("--devices", default=",".join(d for d in TYPES if d == "cpu" or torch.cuda.is_available()))
    parser.add_argument("--threads", default=os.cpu_count(), type=int)
    parser.add_argument("--pictures", default=16, type=int, help="of the quality of tiles")
    parser.add_argument("--json", type=Path, help="also write the tables here")
    parser.add_argument("--document", type=Path, help=f"where tables go (default: {DOCUMENT.name}, none if --quick)")
    parser.add_argument("--winograd", action="store_true", help="only what Winograd's transforms save; not documented")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.task:
        print(json.dumps(task(*json.loads(options.task))))
        return
    if options.quick:
        options.sizes, options.repeats, options.pictures = "64", 1, 1
    document = options.document or (None if options.quick else DOCUMENT)
    torch.set_num_threads(options.threads)
    sizes = [int(size) for size in options.sizes.split(",")]
    if options.winograd:
        for table in winograd_table(sizes, options.repeats):
            print(table.text(), end="\n\n", flush=True)
        return
    tables: list[Table] = []
    command = shlex.join(["python", "benchmarks/vae.py", *argv])
    for table in measure(options.devices.split(","), sizes, options.repeats, options.pictures):
        tables = grown(tables, table)
        print(table.text(), end="\n\n", flush=True)
        save(tables, {"sizes": sizes, "threads": options.threads}, options.json, None)
        if document:
            write_block(document, "autoencoder", tables, command)


if __name__ == "__main__":
    main()
