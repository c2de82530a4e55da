"""ComfyUI's tensors to the library's, and back.

An IMAGE is (B, H, W, 3 or 4) in [0, 1] with straight alpha, a MASK is (B, H, W) and 1 - alpha.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from omnialpha.errors import InputError
from omnialpha.io import to_rgba
from omnialpha.io.layers import Layer, LayerStack


def pictures(image: Tensor) -> list[Tensor]:
    """The pictures (4, H, W) of an IMAGE; what other nodes leave a little outside [0, 1] is clipped."""
    return [to_rgba(one.permute(2, 0, 1).float().clamp(0, 1)) for one in image]


def maps(mask: Tensor, marks_subject: bool) -> list[Tensor]:
    """The maps (H, W), white on the subject, of a MASK (B, H, W) or (H, W)."""
    mask = (mask if mask.ndim == 3 else mask[None]).float().clamp(0, 1)
    return list(mask if marks_subject else 1 - mask)


def repeated(name: str, given: Sequence[Tensor], count: int) -> list[Tensor]:
    """One for each of `count` pictures: those given, or the one given, again and again.

    Raises:
        InputError: There are neither one nor `count`.
    """
    if len(given) not in (1, count):
        raise InputError(f"{name} is a batch of {len(given)}, but the pictures are {count}: give 1 or {count}.")
    return [*given] * (count // len(given))


def as_image(rgba: Sequence[Tensor]) -> Tensor:
    """Pictures (4, H, W) of one size as an IMAGE with alpha."""
    return torch.stack([one.permute(1, 2, 0).cpu() for one in rgba])


def as_mask(rgba: Sequence[Tensor]) -> Tensor:
    """The MASK of pictures (4, H, W): 1 - alpha."""
    return torch.stack([1 - one[3].cpu() for one in rgba])


def layer_images(stacks: Sequence[LayerStack]) -> list[Tensor]:
    """An IMAGE for each layer, back to front, with that layer of all stacks; they have one size and one count."""
    return [as_image([stack[k].placed(stack.size) for stack in stacks]) for k in range(len(stacks[0]))]


def join(images: Sequence[Tensor], names: Sequence[str]) -> list[LayerStack]:
    """Stacks, one for each picture of the batches, of layers back to front.

    Args:
        images: An IMAGE for each layer; a batch of one is taken for all pictures.
        names: As many as there are, from the back; a layer without gets its number.

    Raises:
        InputError: Sizes or batches differ, or there are more names than layers.
    """
    if len(names) > len(images):
        raise InputError(f"there are {len(names)} names for {len(images)} layers: leave {names[-1]!r} out.")
    names = [*names, *(f"layer {k + 1}" for k in range(len(names), len(images)))]
    count = max(len(image) for image in images)
    rows = [repeated(name, pictures(image), count) for name, image in zip(names, images, strict=True)]
    size = tuple(images[0].shape[1:3])
    for name, image in zip(names, images, strict=True):
        if tuple(image.shape[1:3]) != size:
            height, width = image.shape[1:3]
            raise InputError(f"{name} is {width}x{height} px, the first layer {size[1]}x{size[0]}: make them equal.")
    return [LayerStack(size, [Layer(n, row[b]) for n, row in zip(names, rows, strict=True)]) for b in range(count)]
