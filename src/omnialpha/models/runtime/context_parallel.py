"""One picture on several GPUs: a process holds all weights and a part of every sequence (Ulysses, arXiv 2309.14509).

Targets, inputs and text are each cut into as many parts as there are processes. So what holds for the rows of a whole
sequence (targets first, a time of their own for inputs, nothing but targets in the last block) holds for those of a
part, and only attention has to talk to the other processes: diffusers exchanges rows for heads there and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from diffusers.models._modeling_parallel import ParallelConfig
from torch import Tensor
from torch.nn import functional as F

from omnialpha.errors import InputError
from omnialpha.models.transformer.positions import Positions


@dataclass(frozen=True)
class Shares:
    """Which part of every sequence is this process's."""

    config: ParallelConfig
    rank: int
    count: int

    def rows(self, x: Tensor) -> Tensor:
        """(B, N, ...) -> this process's rows; earlier processes get one more where they do not divide."""
        return x.tensor_split(self.count, dim=1)[self.rank]

    def positions(self, whole: Positions, targets: int) -> Positions:
        """Tables and masks of this process's rows; `targets`: the first rows of the image tables."""
        parts: dict[str, Any] = {}
        for name in (field.name for field in fields(whole)):
            table: Tensor | None = getattr(whole, name)
            if table is None:
                continue
            pieces = (table[:, :targets], table[:, targets:]) if name.startswith("image") else (table,)
            parts[name] = torch.cat([self.rows(piece) for piece in pieces], dim=1)
        return replace(whole, **parts)

    def gather(self, part: Tensor, rows: int) -> Tensor:
        """The parts (B, n, C) of every process -> (B, rows, C), on all of them."""
        sizes = [len(piece) for piece in torch.arange(rows).tensor_split(self.count)]
        full = F.pad(part, (0, 0, 0, sizes[0] - part.shape[1]))  # of equal size, as not every library gathers others
        parts = [torch.empty_like(full) for _ in sizes]
        dist.all_gather(parts, full)
        return torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], dim=1)

    def agree(self, lengths: Sequence[int], masked: bool) -> None:
        """Have diffusers take the quick exchange where all divides, or else the one for any lengths."""
        uneven = any(length % self.count for length in lengths)
        # its exchange for any lengths puts the masks of more than two processes together at the wrong places
        if uneven and masked and self.count > 2:
            raise InputError(f"{self.count} processes take samples of one size only: run them one by one.")
        self.config.context_parallel_config.ulysses_anything = uneven  # type: ignore[union-attr]


def share(transformer: Any) -> Shares:
    """Have the attention of a transformer talk to all processes of the default group, each of which calls this."""
    if not dist.is_initialized():
        raise InputError("there is one process only: start several with `torchrun --nproc-per-node 2`.")
    count, device, heads = dist.get_world_size(), transformer.device, transformer.config.num_attention_heads
    if heads % count:
        fit = ", ".join(str(n) for n in range(2, heads + 1) if heads % n == 0)
        raise InputError(f"{heads} attention heads cannot be shared by {count} processes: start one of {fit}.")
    settings = ContextParallelConfig(ulysses_degree=count)
    mesh = dist.device_mesh.init_device_mesh(device.type, settings.mesh_shape, mesh_dim_names=settings.mesh_dim_names)
    config = ParallelConfig(context_parallel_config=settings)
    config.setup(dist.get_rank(), count, device, mesh=mesh)  # enable_parallelism does this, but only on accelerators
    for block in transformer.transformer_blocks:
        block.attn.processor._parallel_config = config
    return Shares(config, dist.get_rank(), count)
