"""Memory by counting: what tensors hold at one time, also of those on torch's device "meta", which are never made."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak(TorchDispatchMode):
    """The most bytes that the tensors made inside hold at one time. Counts no workspace inside an operation.

    device: the type of device that counts, by default all.
    """

    def __init__(self, device: str | None = None) -> None:
        super().__init__()
        self.now = self.most = 0
        self.device, self.known = device, set[int]()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {_id(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        made = func(*args, **(kwargs or {}))
        for x in tree_leaves(made):
            if isinstance(x, Tensor) and self.device in (None, x.device.type) and _id(x) not in given | self.known:
                storage = x.untyped_storage()
                self.known.add(_id(x))
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, _id(x), storage.nbytes())
        self.most = max(self.most, self.now)
        return made

    def _gone(self, key: int, size: int) -> None:
        self.now -= size
        self.known.discard(key)


def _id(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
