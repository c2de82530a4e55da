"""Batches by number from worker processes, in order: torch's DataLoader over whatever `dataset[index]` gives."""

from __future__ import annotations

import io
import pickle
import signal
from collections.abc import Generator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from omnialpha.errors import InputError

ALIGN = 64  # bytes: where tensors begin in a packed batch


class IndexedDataset(Protocol):
    """What an objective trains on. A batch depends on the settings and its index alone."""

    def __getitem__(self, index: int) -> Any:
        """Batch `index`, on the CPU. It is pickled, so that a worker process may make it."""


def batches(
    dataset: IndexedDataset | None, indices: Sequence[int], workers: int, prefetch: int, pinned: bool
) -> Generator[Any, None, None]:
    """The batches of these indices, in their order; None for each where there is no dataset.

    Args:
        workers: processes that make batches ahead of time; 0: none, each is made when it is asked for.
        prefetch: batches that a worker makes ahead.
        pinned: put them into page-locked memory, from which a GPU copies faster.

    Raises:
        InputError: as the dataset does, whoever makes the batch.
    """
    if dataset is None or not workers:
        yield from (None if dataset is None else dataset[index] for index in indices)
        return
    from torch.utils.data import DataLoader

    loader: DataLoader[Any] = DataLoader(
        _Packing(dataset),  # type: ignore[arg-type]
        batch_size=None,
        sampler=indices,
        num_workers=workers,
        prefetch_factor=prefetch,
        pin_memory=pinned,
        worker_init_fn=_ignore_interrupts,
    )
    for packed in loader:
        if isinstance(packed, str):
            raise InputError(packed)
        yield unpack(*packed)


class _Packing:
    """A batch as bytes and one tensor: each tensor of a batch would take a file descriptor of its own on its way."""

    def __init__(self, dataset: IndexedDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> tuple[bytes, Tensor] | str:
        try:
            return pack(self.dataset[index])
        except InputError as error:  # DataLoader would tell it with the traceback of another process
            return str(error)


def pack(batch: Any) -> tuple[bytes, Tensor]:
    """Any picklable value, its tensors one behind the other in a uint8 tensor."""
    file, found = io.BytesIO(), list[Tensor]()
    size = 0

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            nonlocal size
            if not isinstance(value, Tensor):
                return None
            place = size
            found.append(value.detach().contiguous())
            size += -(-value.nbytes // ALIGN) * ALIGN
            return place, value.dtype, tuple(value.shape)

    Pickler(file, pickle.HIGHEST_PROTOCOL).dump(batch)
    buffer, place = torch.empty(size, dtype=torch.uint8), 0
    for tensor in found:
        buffer[place : place + tensor.nbytes] = tensor.reshape(-1).view(torch.uint8)
        place += -(-tensor.nbytes // ALIGN) * ALIGN
    return file.getvalue(), buffer


def unpack(data: bytes, buffer: Tensor) -> Any:
    """What `pack` was given; its tensors are views of the buffer."""

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, known: Any) -> Tensor:
            place, dtype, shape = known
            count = dtype.itemsize
            for length in shape:
                count *= length
            return buffer[place : place + count].view(dtype).view(shape)

    return Unpickler(io.BytesIO(data)).load()


def _ignore_interrupts(_worker: int) -> None:
    """Ctrl-C reaches workers too; the run decides when it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
