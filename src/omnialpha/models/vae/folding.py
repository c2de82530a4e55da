"""Folding the causal 3-D Qwen-Image VAE into its exact single-frame 2-D network, and back."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

State = Mapping[str, Tensor]


def fold(state: State) -> dict[str, Tensor]:
    """3-D Qwen-Image VAE weights -> the equal 2-D network's (single frame)."""
    folded = {}
    for name, weight in state.items():
        if ".time_conv." in name:
            continue  # skipped on the first chunk, and one frame is the first chunk
        if weight.ndim == 5:
            weight = weight[:, :, -1]
        elif name.endswith(".gamma"):
            weight = weight.reshape(-1, 1, 1)
        folded[name] = weight.contiguous()
    return folded


def unfold(state: State, template: State) -> dict[str, Tensor]:
    """2-D weights -> 3-D, writing only the acting slices over `template`, which keeps its other (unused) weights."""
    full = {}
    for name, old in template.items():
        if ".time_conv." in name:
            full[name] = old
            continue
        new = state[name]
        if old.ndim == 5:
            # a new alpha channel has no counterpart in an RGB template: its earlier slices start at zero
            weight = new.new_zeros(new.shape[0], new.shape[1], *old.shape[2:])
            weight[: old.shape[0], : old.shape[1]] = old
            weight[:, :, -1] = new
            new = weight
        elif name.endswith(".gamma"):
            new = new.reshape(old.shape)
        full[name] = new.contiguous()
    return full
