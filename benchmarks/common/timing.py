"""Calls timed in turn, so that a busy moment of the machine meets all of them, and the peak memory of a process."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

# What other programs ask of the processor when this one begins; figures of a machine that is at work elsewhere say so
LOAD = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
BUSY = 0.5

Times = dict[str, list[float]]


def now(device: torch.device) -> float:
    """Seconds, when all that the device was asked for is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def in_turn(calls: Mapping[str, Callable[[], Any]], repeats: int, device: torch.device, warm: int = 1) -> Times:
    """Seconds of each call, `repeats` times after `warm` unmeasured rounds; every other round runs backwards."""
    seconds: Times = {name: [] for name in calls}
    for number in range(warm + repeats):
        for name in list(calls)[:: 1 if number % 2 else -1]:
            start = now(device)
            calls[name]()
            took = now(device) - start
            if number >= warm:
                seconds[name].append(took)
    return seconds


def medians(seconds: Times) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_bytes(device: torch.device) -> int:
    """Most memory so far: allocated on a CUDA device, resident of this process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count what the process was before it became this program
        line = next(row for row in status.read_text().splitlines() if row.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def surroundings(device: torch.device, dtype: torch.dtype) -> str:
    """dtype, device, threads and versions, as they stand above each table, and whether the machine was shared."""
    cpu = f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    versions = f"torch {torch.__version__}, diffusers {diffusers.__version__}, transformers {transformers.__version__}"
    shared = f", on a shared machine (load {LOAD:.1f} before)" if LOAD > BUSY else ""
    return f"{str(dtype).removeprefix('torch.')}, {where}, {versions}{shared}"
