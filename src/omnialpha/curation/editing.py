"""What paints a scene around a foreground, and what takes it out again: a model of ours, a published one, or a server.

Each is a row of a table, made once in a process. A server may be called from many threads, a model by one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from omnialpha import rgba
from omnialpha.curation.vlm import GREY, Server, VLMSettings
from omnialpha.errors import InputError
from omnialpha.io import conversion

EFFECTS = 512  # px of the shorter side that ObjectClear works at


@dataclass(frozen=True)
class EditSettings:
    """Of an editor or a remover.

    kind: a row of EDITORS or REMOVERS. model: a name, folder or id. device: as everywhere. steps, guidance, dtype: the
    model's own where left out. server: of kind "server". options: other arguments of a published pipeline's call.
    """

    kind: str = ""
    model: str = ""
    device: str = "auto"
    dtype: str = "bfloat16"
    steps: int | None = None
    guidance: float | None = None
    server: VLMSettings = field(default_factory=VLMSettings)
    options: dict[str, Any] = field(default_factory=dict)


class Editor(Protocol):
    def edit(self, foreground: Tensor, instruction: str, scene: str, seed: int) -> Tensor:
        """The whole picture (4, H, W), opaque, around a foreground (4, H, W)."""


class Remover(Protocol):
    def remove(self, picture: Tensor, mask: Tensor, seed: int) -> Tensor:
        """The picture (4, H, W), opaque, without what the mask (H, W) in {0, 1} marks in a picture (4, H, W)."""


@cache
def _loaded(model: str, device: str) -> Any:
    """A model of this package, which an editor and a remover may share."""
    from omnialpha.loading import load

    return load(model or None, device=device)


class OwnModel:
    """Completion and removal by a model of this package."""

    def __init__(self, settings: EditSettings) -> None:
        self.model = _loaded(settings.model, settings.device)
        given = {"steps": settings.steps, "guidance": settings.guidance}
        self.options = {name: value for name, value in given.items() if value is not None}

    def edit(self, foreground: Tensor, instruction: str, scene: str, seed: int) -> Tensor:
        return rgba.opaque(self.model.complete(scene, foreground=foreground, seed=seed, **self.options))

    def remove(self, picture: Tensor, mask: Tensor, seed: int) -> Tensor:
        return rgba.opaque(self.model.remove(picture, rough=mask, seed=seed, **self.options))


class QwenImageEdit:
    """Qwen-Image-Edit-2509 by diffusers, from a folder: the foreground on grey and the instruction."""

    def __init__(self, settings: EditSettings) -> None:
        from diffusers import QwenImageEditPlusPipeline

        self.pipe = _pipeline(partial(QwenImageEditPlusPipeline.from_pretrained, settings.model), settings)
        given = {"num_inference_steps": settings.steps, "true_cfg_scale": settings.guidance}
        self.options = {"negative_prompt": " "} | {k: v for k, v in given.items() if v is not None} | settings.options

    def edit(self, foreground: Tensor, instruction: str, scene: str, seed: int) -> Tensor:
        height, width = foreground.shape[-2:]
        image = _image(rgba.flatten(foreground, GREY))
        size = {"height": height // 16 * 16, "width": width // 16 * 16}  # what it can make; `paint` resizes
        made = self.pipe([image], prompt=instruction, generator=_generator(seed), **size, **self.options)
        return rgba.opaque(conversion.to_rgba(made.images[0]))


class ObjectClear:
    """ObjectClear by its own package, at 512 px of the shorter side as published."""

    def __init__(self, settings: EditSettings) -> None:
        try:
            from objectclear.pipelines import ObjectClearPipeline
        except ImportError:
            raise InputError(
                "remove.kind='objectclear' needs the package objectclear, from the code that is published with the "
                "model: install it, or use 'removal' or 'server'."
            ) from None

        def load(**more: Any) -> Any:
            return ObjectClearPipeline.from_pretrained_with_custom_modules(
                settings.model or "jixin0101/ObjectClear", apply_attention_guided_fusion=True, **more
            )

        self.pipe = _pipeline(load, settings)
        defaults: dict[str, Any] = {"num_inference_steps": 20, "guidance_scale": 2.5, "strength": 0.99}
        given = {"num_inference_steps": settings.steps, "guidance_scale": settings.guidance}
        self.options = defaults | {k: v for k, v in given.items() if v is not None} | settings.options

    def remove(self, picture: Tensor, mask: Tensor, seed: int) -> Tensor:
        factor = EFFECTS / min(picture.shape[-2:])
        height, width = (max(8, round(n * factor) // 8 * 8) for n in picture.shape[-2:])
        image, hole = (_image(p).resize((width, height), Image.Resampling.BICUBIC) for p in (picture[:3], mask[None]))
        made = self.pipe(
            prompt="remove the instance of object", image=image, mask_image=hole.convert("L"), height=height,
            width=width, generator=_generator(seed), **self.options,
        )  # fmt: skip
        return rgba.opaque(conversion.to_rgba(made.images[0]))


class EditServer:
    """A server with OpenAI's /images/edits; as a remover it gets a mask and the words of the prompt `removal`."""

    def __init__(self, settings: EditSettings, words: str = "") -> None:
        self.server, self.words = Server(settings.server), words

    def edit(self, foreground: Tensor, instruction: str, scene: str, seed: int) -> Tensor:
        return self.server.edit(rgba.opaque(rgba.flatten(foreground, GREY)), instruction)

    def remove(self, picture: Tensor, mask: Tensor, seed: int) -> Tensor:
        return self.server.edit(picture, self.words, hole=mask)


EDITORS: dict[str, Callable[[EditSettings], Editor]] = {
    "completion": OwnModel,
    "qwen-image-edit": QwenImageEdit,
    "server": EditServer,
}
REMOVERS: dict[str, Callable[[EditSettings, str], Remover]] = {
    "removal": lambda settings, words: OwnModel(settings),
    "objectclear": lambda settings, words: ObjectClear(settings),
    "server": EditServer,
}


def check_kind(section: str, kind: str) -> None:
    """InputError for a kind that its table does not have."""
    table: Collection[str] = EDITORS if section == "edit" else REMOVERS
    if kind not in table:
        raise InputError(f"{section}.kind={kind!r} is not known: use one of {', '.join(table)}.")


def paint(made: Tensor, size: tuple[int, int]) -> Tensor:
    """A made picture at the size of what it was made of, which some models only come near to."""
    return made if tuple(made.shape[-2:]) == size else rgba.opaque(rgba.resize(made, size).clamp(0, 1))


def _pipeline(load: Callable[..., Any], settings: EditSettings) -> Any:
    """A pipeline of diffusers on its device, silent."""
    from omnialpha.models.runtime.placement import DTYPES, pick_device

    if settings.dtype not in DTYPES:
        raise InputError(f"dtype={settings.dtype!r} is not known: use one of {', '.join(DTYPES)}.")
    try:
        pipe = load(torch_dtype=DTYPES[settings.dtype])
    except OSError as error:
        raise InputError(f"model={settings.model!r} cannot be loaded ({error}): give a folder that holds it.") from None
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(pick_device(settings.device))


def _image(picture: Tensor) -> Image.Image:
    """(1 or 3, H, W) in [0, 1] as a picture of Pillow's, RGB."""
    samples = (picture.clamp(0, 1) * 255).round().byte().expand(3, -1, -1)
    return Image.fromarray(samples.permute(1, 2, 0).contiguous().numpy())


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
