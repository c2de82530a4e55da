"""The RGBA reconstruction benchmark: what an autoencoder loses of pictures with alpha, seen on nine backgrounds.

After the ALPHA benchmark of AlphaVAE (arXiv 2507.09308), without its roundings unless `compat` asks for them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from omnialpha import rgba
from omnialpha.canvas import Canvas
from omnialpha.data.records.folders import find, has_alpha
from omnialpha.errors import InputError
from omnialpha.evaluation.metrics import image
from omnialpha.evaluation.metrics.backgrounds import BACKGROUNDS
from omnialpha.evaluation.metrics.features import Features
from omnialpha.evaluation.metrics.lpips import LPIPS
from omnialpha.evaluation.reports.report import Row, append_row, read_rows
from omnialpha.files import atomic_write, sha256
from omnialpha.io import read_image

if TYPE_CHECKING:
    from omnialpha.models.vae.autoencoder import Autoencoder

ROWS, FEATURES = "rows.jsonl", "features"
ROOT = "all"  # the category of pictures that lie in no subfolder


def as_jpeg(x: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] as the published protocol stores it: cut down to 8 bits, then JPEG of quality 75."""
    made = []
    for pixels in (x * 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG")
        with Image.open(file) as stored:
            made.append(np.asarray(stored, dtype=np.float32) / 255)
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).to(x.device)


STORED: Mapping[str | None, Callable[[Tensor], Tensor]] = {None: lambda x: x, "alphavae": as_jpeg}


@dataclass(frozen=True)
class Settings:
    """size: of the longer side in px (None: as it is). limit: pictures of a category. batch: pictures of one size at
    once. skip_bad: pictures that cannot be measured are listed instead of ending the run. compat: "alphavae".
    """

    size: int | None = None
    limit: int | None = None
    batch: int = 1
    skip_bad: bool = False
    compat: str | None = None
    lpips: LPIPS | None = None
    features: Features | None = None

    def __post_init__(self) -> None:
        for name in ("size", "limit", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}={value} is out of range: use 1 or more.")
        if self.compat not in STORED:
            raise InputError(f"compat={self.compat!r} is not known: use alphavae, or leave it out.")

    @property
    def smallest(self) -> int:
        """Side in px of the smallest picture that every metric takes."""
        return max(image.SSIM_WINDOW, self.lpips.smallest if self.lpips else 0)

    def shared(self) -> dict[str, Any]:
        """What two rows must have in common to stand in one table."""
        networks = {"lpips": digest(self.lpips) if self.lpips else None}
        networks["features"] = self.features.identity if self.features else None
        return {"size": self.size, "compat": self.compat, **networks}


@dataclass(frozen=True)
class Item:
    """name: its path below the folder, with `/`; category: the first part of it."""

    path: Path
    name: str
    category: str


def find_items(folder: str | Path, limit: int | None = None) -> list[Item]:
    """The pictures of a folder tree by name, at most `limit` of each category."""
    made: list[Item] = []
    counts: dict[str, int] = {}
    for path in find(folder):
        name = path.relative_to(folder)
        category = name.parts[0] if len(name.parts) > 1 else ROOT
        counts[category] = counts.get(category, 0) + 1
        if limit is None or counts[category] <= limit:
            made.append(Item(path, name.as_posix(), category))
    return made


@dataclass
class Benchmark:
    """One autoencoder on the pictures of a folder. What is finished is kept in `out`, and is not done again.

    A VAE for RGB gets the composite on each background as a picture of its own: nine encodings for one of RGBA, and
    alpha is not measured.
    bad: name -> why it was passed over, filled by `rows`.
    """

    autoencoder: Autoencoder
    folder: Path
    out: Path
    settings: Settings = Settings()
    bad: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.autoencoder.config.channels in (3, 4), "an autoencoder for RGB or RGBA"
        self.items = find_items(self.folder, self.settings.limit)
        self.shared = {"model": identity(self.autoencoder), **self.settings.shared()}
        (self.out / FEATURES if self.settings.features else self.out).mkdir(parents=True, exist_ok=True)

    def __len__(self) -> int:
        return len(self.items)

    # ---- pictures ----------------------------------------------------------------------------------------------

    def rows(self) -> Iterator[Row]:
        """The figures of one picture after the other, each stored before it is given."""
        stored = read_rows(self.out / ROWS)
        waiting: list[tuple[Item, str, Tensor]] = []
        for item in self.items:
            key = self._key(item)
            if key in stored and (not self.settings.features or self._features_of(key).is_file()):
                yield from self._finish(waiting)
                yield stored[key]
                continue
            try:
                picture = self.read(item)
            except InputError as error:
                if not self.settings.skip_bad:
                    yield from self._finish(waiting)
                    raise
                self.bad[item.name] = str(error)
                continue
            if waiting and (len(waiting) == self.settings.batch or waiting[0][2].shape != picture.shape):
                yield from self._finish(waiting)
            waiting.append((item, key, picture))
        yield from self._finish(waiting)

    def read(self, item: Item) -> Tensor:
        """(4, H, W) at the size that is measured; InputError where it cannot be."""
        if not has_alpha(item.path):
            raise InputError(f"{item.path} has no alpha channel: leave it out, or pass over such files with skip_bad.")
        picture = read_image(item.path).rgba
        if self.settings.size:
            scale = self.settings.size / max(picture.shape[1:])
            height, width = (max(1, round(side * scale)) for side in picture.shape[1:])
            picture = rgba.resize(picture, (height, width))
        if min(picture.shape[1:]) < self.settings.smallest:
            size, least = f"{picture.shape[2]}x{picture.shape[1]}", self.settings.smallest
            raise InputError(
                f"{item.path} would be measured at {size}, but needs sides of {least} px: use another size."
            )
        return picture

    @property
    def sees_alpha(self) -> bool:
        return self.autoencoder.config.channels == 4

    def predict(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        """(B, 4, H, W) there and back; from an autoencoder for RGB the composites (B, 3, H, W) by background."""
        if self.sees_alpha:
            return self.reconstruct(x)
        return {name: self.reconstruct(rgba.flatten(x, color)) for name, color in BACKGROUNDS.items()}

    @torch.inference_mode()
    def reconstruct(self, x: Tensor) -> Tensor:
        """(B, C, H, W) there and back, C as the VAE has. Sides grow to multiples of the VAE's ratio, by repeating
        the last row and column, and are cut back.
        """
        ratio, (height, width) = self.autoencoder.ratio, (int(side) for side in x.shape[2:])
        padded = (ceil(height / ratio) * ratio, ceil(width / ratio) * ratio)
        canvas = Canvas((height, width), (height, width), padded)
        x = canvas.fit(x.to(self.autoencoder.device))
        return canvas.restore(self.autoencoder.decode(self.autoencoder.encode(x)))

    def _finish(self, waiting: list[tuple[Item, str, Tensor]]) -> Iterator[Row]:
        """Rows of the pictures that wait, all of one size; afterwards none does."""
        if not waiting:
            return
        true = torch.stack([picture for _, _, picture in waiting]).to(self.autoencoder.device)
        predicted = self.predict(true)
        made = predicted.values() if isinstance(predicted, dict) else [predicted]
        if not all(bool(pictures.isfinite().all()) for pictures in made):
            raise InputError(f"the model answers NaN for {waiting[0][0].path}: its weights are damaged.")
        figures, features = compare(predicted, true, self.settings)
        for i, (item, key, picture) in enumerate(waiting):
            row: Row = {"key": key, "name": item.name, "category": item.category}
            row |= {"height": int(picture.shape[1]), "width": int(picture.shape[2])}
            row |= {name: value if isfinite(value) else None for name, value in figures[i].items()}
            if features is not None:
                buffer = io.BytesIO()
                np.save(buffer, features[i].numpy())
                atomic_write(self._features_of(key), buffer.getvalue())
            append_row(self.out / ROWS, row)
            yield row
        waiting.clear()

    def _key(self, item: Item) -> str:
        content = sha256(item.path)
        told = json.dumps({"name": item.name, "content": content, **self.shared}, sort_keys=True)
        return sha256(told)[:32]

    def _features_of(self, key: str) -> Path:
        return self.out / FEATURES / f"{key}.npy"

    def features(self, rows: Sequence[Row], background: str) -> tuple[Tensor, Tensor]:
        """Of the predictions and of the truths of these rows on one background, (N, D) each."""
        index = list(BACKGROUNDS).index(background)
        made = np.stack([np.load(self._features_of(row["key"]), mmap_mode="r")[index] for row in rows])
        return torch.from_numpy(made[:, 0]), torch.from_numpy(made[:, 1])


@torch.inference_mode()
def compare(
    predicted: Tensor | Mapping[str, Tensor], true: Tensor, settings: Settings
) -> tuple[list[dict[str, float]], Tensor | None]:
    """RGBA batches (B, 4, H, W) -> figures by name, a dictionary a picture, and features (B, 9, 2, D) if any are asked
    for: on each background of the prediction and of the truth. predicted: or composites (B, 3, H, W) by background,
    which have no alpha to compare.
    """
    made: dict[str, Tensor] = {}
    if isinstance(predicted, Tensor):
        made = {
            "rgba_psnr": image.psnr(predicted, true),
            "color_error": image.color_error(predicted, true),
            "alpha_mad": image.alpha_mad(predicted, true),
        }
        predicted = {name: rgba.flatten(predicted, color) for name, color in BACKGROUNDS.items()}
    features = []
    for name, color in BACKGROUNDS.items():
        p, t = (STORED[settings.compat](x) for x in (predicted[name], rgba.flatten(true, color)))
        made |= {f"psnr_{name}": image.psnr(p, t), f"ssim_{name}": image.ssim(p, t)}
        if settings.lpips:
            made[f"lpips_{name}"] = settings.lpips(2 * p - 1, 2 * t - 1)
        if settings.features:
            features.append(torch.stack(settings.features(torch.cat([p, t])).chunk(2), dim=1))
    for metric in ("psnr", "ssim", "lpips"):
        if of_each := [made[name] for b in BACKGROUNDS if (name := f"{metric}_{b}") in made]:
            made[metric] = torch.stack(of_each).mean(dim=0)
    values = {name: value.tolist() for name, value in made.items()}
    figures = [{name: value[i] for name, value in values.items()} for i in range(len(true))]
    return figures, torch.stack(features, dim=1) if features else None


def identity(autoencoder: Autoencoder) -> str:
    """The same for the same pictures: of the class, its settings and the weights."""
    config = {k: v for k, v in autoencoder.config.items() if not k.startswith("_")}
    told = [type(autoencoder).__name__, config, autoencoder.normalisation, repr(autoencoder.tiling)]
    return sha256(json.dumps(told, sort_keys=True, default=str))[:16] + digest(autoencoder)


def digest(module: nn.Module) -> str:
    """Of all weights."""
    parts: list[Any] = []
    for name, tensor in sorted(module.state_dict().items()):
        parts += [f"{name} {tensor.dtype} {tuple(tensor.shape)}"]
        parts += [tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()]
    return sha256(*parts)[:16]
