"""What a run will take, from sizes alone, so that it can be said before weights are read: memory and, roughly, time.

At its widest a stage holds the weights that its way of offloading keeps on the device, and tensors of so many numbers
(every tensor counted: `tests/models/runtime/test_estimate.py`):

- VAE: 6 maps of as many channels as the network has at full resolution, and a few pictures in float32; on a
  CPU what `winograd` holds;
- instruction: 6 widths and 3 hidden widths of the MLP for each token, or 12 and 3 for each patch and its pixels;
- transformer of width D: 14.5 D a picture token, 9 D a text token, rotary tables in float32, and the embedded inputs
  and text of each branch of guidance;
- full size, in main memory: every picture as float32 RGBA, and what restores, refines and writes one.

The gaps of an allocator and the workspace of a GPU's libraries come on top.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from omnialpha.errors import InputError
from omnialpha.models.runtime.model_sizes import ModelSizes
from omnialpha.models.runtime.placement import DTYPES, Placement, pick_device
from omnialpha.models.transformer.positions import Layout
from omnialpha.models.vae.winograd import workspace
from omnialpha.sampling import MAX_PAIRED_TOKENS

MARGIN = 1.05
MAPS = 6  # as large as an autoencoder's at full resolution, at one time
FULL = "full size"
HELD = 16  # bytes a pixel of a picture, RGBA in float32
WORKSPACE = int(0.5e9)  # bytes of a GPU's libraries
TIMES = 50  # a table of modulation is taken to be at least this long
ENCODE, DECODE = 250, 400  # operations a pixel, of an autoencoder of one channel; they grow with the square
# Bytes a pixel while a picture is restored and written, and where it is refined or its layers compared. `omnialpha
# matte` of pictures of 12, 24 and 64 MP with nano had at its peak 1.5, 2.5 and 5.6 GB with --raw, 2.4 to 2.5, 4.3 and
# 9.7 GB without, and `decompose --raw` 2.7 GB at 12 MP, .6 GB of that the program itself.
WORK, WIDE_WORK = 48, 128
# Seconds a pixel, very roughly: on two idle x86-64 cores refining took 3.0 s at .75 MP and 7.9 s at 12 MP.
WRITING, REFINING = 0.7e-6, 0.45e-6
FILLING = (3.0, 0.4e-6)  # seconds, and a pixel: 3.1 s on photographs, 8 s at 12 MP (`python benchmarks/fill.py`)
REACHED = 0.5  # of the speed of one large matrix product
BUS = 8e9  # bytes a second from main memory to a GPU in a modest slot


@dataclass(frozen=True)
class Job:
    """What is to be run.

    Args:
        layout: of the samples, all alike.
        guided: whether there is a second pass without the instruction.
        batch: samples at a time.
        instruction_tokens: of an instruction and of the template behind its prefix.
        tile: side in pixels, where the VAE runs in tiles.
        pixels: of a picture at full size.
        refined: how many targets are refined at full size.
        filled: whether what is behind a subject is filled at full size.
        compared: whether layers are recomposed at full size.
    """

    sizes: ModelSizes
    layout: Layout
    placement: Placement
    steps: int
    guided: bool
    batch: int = 1
    instruction_tokens: int = 100
    tile: int | None = None
    pixels: int = 0
    refined: int = 0
    filled: bool = False
    compared: bool = False

    @property
    def text_tokens(self) -> int:
        """That the transformer sees."""
        return len(self.layout.inputs) * self.sizes.picture_tokens + self.instruction_tokens

    @property
    def image_tokens(self) -> int:
        return self.layout.target_tokens + self.layout.input_tokens

    @property
    def dtype(self) -> str:
        return self.placement.dtype or self.sizes.dtype


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Args:
        job: the run.
        device: on which.
        weights_bytes: of all weights as stored.
        host_bytes: in main memory, for another device.
        stages: the peak of each stage on the device, in bytes.
        seconds: within a factor of 3 or so; None where the speed is not known.
        warning: that memory is short, or "".
    """

    job: Job
    device: str
    weights_bytes: int
    host_bytes: int
    stages: dict[str, int]
    seconds: float | None = None
    warning: str = ""

    @property
    def stage(self) -> str:
        """The one that needs most."""
        return max(self.stages, key=self.stages.__getitem__)

    @property
    def peak_bytes(self) -> int:
        """On the device, at most."""
        return self.stages[self.stage]

    def __str__(self) -> str:
        peak = f"{self.peak_bytes / 1e9:.1f} GB" if self.peak_bytes >= 1e8 else f"{self.peak_bytes / 1e6:.0f} MB"
        text = f"{self.device}, {self.job.dtype}: about {peak} at the peak ({self.stage})"
        return text if self.seconds is None else f"{text}, very roughly {max(self.seconds, 1):.0f} s"


def estimate(job: Job, speed: float | None = None) -> Estimate:
    """Estimate memory and time. speed: operations a second, see `measure_speed`; None for no estimate of time."""
    a, placement, device = job.sizes, job.placement, torch.device(pick_device(job.placement.device))
    cpu, number = device.type == "cpu", DTYPES[job.dtype].itemsize
    parts = {"autoencoder": a.vae, "instruction": a.text, "transformer": a.transformer}
    stored = {name: part.bytes(placement, number) for name, part in parts.items()}
    total, host, streams = sum(stored.values()), 0, placement.offload in ("group", "disk")
    if placement.offload == "none" or (cpu and placement.offload != "disk"):
        there = dict.fromkeys(parts, total)  # from main memory to main memory nothing moves
    elif placement.offload == "model":
        there, host = stored, total
    else:
        beside = stored["autoencoder"]
        there = {name: part.streamed(placement, number) + beside * (part.group > 0) for name, part in parts.items()}
        host = total - beside if placement.offload == "group" else 0
    if not cpu and job.dtype != a.stored:  # all of it is converted in main memory first
        host = max(host, number * (sum(part.total for part in parts.values()) + a.visiting * a.layers))
    full = job.pixels * (HELD * len(job.layout.pictures) + (WIDE_WORK if job.refined or job.compared else WORK))
    widest = _activations(job, number, cpu)
    if not cpu:
        host += full
    elif full:
        widest, there = widest | {FULL: full}, there | {FULL: there["autoencoder"]}
    extra = WORKSPACE if device.type == "cuda" else 0
    stages = {name: int(MARGIN * (there[name] + size)) + extra for name, size in widest.items()}
    seconds = None
    if speed is not None:
        moved = stored["transformer"] / BUS if streams and not cpu else 0.0
        branches = job.steps * (1 + job.guided)
        seconds = _once(job) / (REACHED * speed) + branches * max(moved, _branch(job) / (REACHED * speed))
        seconds += job.pixels * (WRITING * len(job.layout.targets) + REFINING * job.refined)
        seconds += (FILLING[0] + FILLING[1] * job.pixels) * job.filled
    return Estimate(job, str(device), total, host, stages, seconds)


def _activations(job: Job, number: int, cpu: bool) -> dict[str, int]:
    """Bytes of a stage's tensors at its widest; number: bytes of one."""
    a, layout, text, image = job.sizes, job.layout, job.text_tokens, job.image_tokens
    area = max(h * w for h, w in layout.pictures) * a.side**2
    network = min(area, (job.tile or area) ** 2) / a.patch_size**2 * MAPS * a.channels * number
    pictures = max(
        n * (network + copies * HELD * area) for n, copies in ((len(layout.inputs), 5), (len(layout.targets), 3))
    )
    patches = 4 * a.picture_tokens * len(layout.inputs)
    words = max((text + job.instruction_tokens) * a.token * number, patches * a.patch * 4)
    constant = (layout.input_tokens + text) * a.width * number + (image + text) * 4 * a.head + text * a.context * number
    rows = (14.5 * image + 9 * text) * a.width * number + (image + text) * 8 * a.head
    branches = 1 + job.guided
    together = branches if job.batch * image <= MAX_PAIRED_TOKENS else 1
    table = max(TIMES, job.steps + 1) * a.table * number + a.visiting * number
    plain = cpu and number == 4
    strips = workspace(a.channels, area // a.patch_size**2) if plain else 0
    return {
        "autoencoder": int(job.batch * pictures) + strips,
        "instruction": int(job.batch * words),
        "transformer": int(job.batch * (branches * constant + together * rows) + table),
    }


def _branch(job: Job) -> float:
    """Operations of one step of one branch: 12 D^2 products a token and layer, and attention of all with all."""
    tokens, width = job.image_tokens + job.text_tokens, job.sizes.width
    return job.batch * job.sizes.layers * (24 * tokens * width**2 + 4 * tokens**2 * width)


def _once(job: Job) -> float:
    """Operations of the autoencoder and the instruction encoder."""
    a, layout = job.sizes, job.layout
    inputs, targets = (tokens * a.side**2 for tokens in (layout.input_tokens, layout.target_tokens))
    autoencoder = (ENCODE * inputs + DECODE * targets) * (a.channels / a.patch_size) ** 2
    return job.batch * (autoencoder + 2 * a.text.total * job.text_tokens * (1 + job.guided))


# ---- before it starts -------------------------------------------------------------------------------------------

# What makes a run fit, in the order in which it is proposed: first what leaves pictures as they are.
FIXES: tuple[dict[str, Any], ...] = (
    {"offload": "model"},
    {"offload": "group"},
    {"dtype": "bfloat16"},
    {"dtype": "bfloat16", "offload": "model"},
    {"dtype": "bfloat16", "offload": "group"},
    {"offload": "disk"},
    {"dtype": "bfloat16", "offload": "disk"},
    {"quantize": "int8"},
    {"quantize": "int8", "offload": "model"},
    {"quantize": "int8", "offload": "group"},
    {"quantize": "nf4", "offload": "model"},
)


def memory_warning(made: Estimate, free: int | None = None, host_free: int | None = None) -> str:
    """What is short for a run that may not fit, and the first setting that would help; "" where it fits.

    Args:
        made: what the run is estimated to take.
        free: bytes that the device has, by default those it has now.
        host_free: the same of main memory.
    """
    free = available(torch.device(made.device)) if free is None else free
    host_free = available(torch.device("cpu")) if host_free is None else host_free
    if _fits(made, free, host_free):
        return ""
    need, there, where = made.peak_bytes, free, made.device
    if need <= free:
        need, there, where = made.host_bytes, host_free, "main memory"
    problem = f"this run needs about {need / 1e9:.1f} GB of {where}, which has {there / 1e9:.1f} GB free"
    smallest, way = made.peak_bytes, ""
    for fix in FIXES:
        try:
            other = estimate(replace(made.job, placement=replace(made.job.placement, **fix)))
        except InputError:  # settings that do not go together
            continue
        smallest = min(smallest, other.peak_bytes)
        if _fits(other, free, host_free):
            way = "use " + " ".join(f"--{name} {value}" for name, value in fix.items())
            break
    if not way and made.stage == FULL:
        way = "make the picture smaller"
    way = way or f"no setting helps, use a device with {smallest / 1e9:.1f} GB free"
    return f"{problem}, so it may be slow or be stopped: {way}"


def _fits(made: Estimate, free: int, host_free: int) -> bool:
    return made.peak_bytes <= free and made.host_bytes <= host_free


def available(device: torch.device) -> int:
    """Bytes that this process can still use on a device."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    import psutil  # comes with accelerate

    return psutil.virtual_memory().available


@lru_cache(maxsize=8)
def measure_speed(device: torch.device, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """Floating-point operations a second of one large matrix product, measured for about so long."""
    side = 512 if device.type == "cpu" else 4096
    x = torch.ones(side, side, device=device, dtype=dtype)
    (x @ x).sum().item()  # whatever the first product has to set up
    count, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds:
        (x @ x)[0, 0].item()  # waits for the device
        count += 1
    return 2 * side**3 * count / passed
