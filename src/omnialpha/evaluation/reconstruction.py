"""The RGBA reconstruction benchmark: what an autoencoder loses of pictures with alpha, seen on nine backgrounds.

After the ALPHA benchmark of AlphaVAE (arXiv 2507.09308), without its roundings unless `compat` asks for them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from functools import partial
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from omnialpha import rgba
from omnialpha.canvas import Canvas
from omnialpha.errors import InputError
from omnialpha.evaluation.datasets.rgba_pictures import TASK
from omnialpha.evaluation.methods.method import Method
from omnialpha.evaluation.metrics import image
from omnialpha.evaluation.metrics.backgrounds import BACKGROUNDS
from omnialpha.evaluation.metrics.features import digest_of_weights
from omnialpha.evaluation.metrics.matting import measure
from omnialpha.evaluation.reports.report import Column
from omnialpha.evaluation.scoring import LPIPS_COLUMN, PSNR, SSIM, Figures, Networks, Scoring, similarity
from omnialpha.files import sha256
from omnialpha.tasks import Example

if TYPE_CHECKING:
    from omnialpha.models.vae.autoencoder import Autoencoder

WHOLE = (
    Column("rgba_psnr", "RGBA PSNR (dB)", 2, "higher"),
    Column("color_error", "colour error (alpha > 0)", 4, "lower"),
    Column("alpha_mad", "alpha MAD", 4, "lower"),
)
SETS = (Column("fid", "rFID", 3, "lower"), Column("kid", "rKID", 5, "lower"))
NOTES = (
    "a category is the first folder below the pictures' own",
    f"PSNR ends at {image.PSNR_CEILING:g} dB, also for equal pictures",
    "RGBA PSNR compares all four channels as they are, colour under alpha 0 too",
    "where pictures are resized, colour is premultiplied: where alpha is 0 it becomes black",
    "rFID is biased upwards where n is small; one picture is no distribution and has none",
)
COMPAT = (
    "compat=alphavae: composites are cut down to 8 bits, not rounded, and stored as JPEG (quality 75, halved colour "
    "resolution) before they are compared; RGBA PSNR, colour error and alpha MAD are not affected"
)
NO_ALPHA = "an autoencoder for RGB gets composites, so alpha and the colours under it cannot be measured"


def of_autoencoder(autoencoder: Autoencoder, name: str, batch: int = 1) -> Method:
    """The mean of its posterior, decoded. One for RGB gets the composite on each background as a picture of its own,
    nine encodings for one of RGBA, and answers them as opaque pictures.
    """
    assert autoencoder.config.channels in (3, 4), "an autoencoder for RGB or RGBA"

    def make(examples: Sequence[Example], seeds: Sequence[int]) -> list[Tensor]:
        x = torch.stack([example.inputs[0] for example in examples])
        if autoencoder.config.channels == 4:
            return list(reconstruct(autoencoder, x)[:, None].cpu())
        seen = [reconstruct(autoencoder, rgba.flatten(x, color)).cpu() for color in BACKGROUNDS.values()]
        return list(rgba.opaque(torch.stack(seen, dim=1)))

    given = f"sides grow to multiples of {autoencoder.ratio} px by repeating the last row and column, and are cut back"
    if autoencoder.config.channels == 3:
        given += "; every background is encoded by itself, nine times a picture"
    config = {k: v for k, v in autoencoder.config.items() if not k.startswith("_")}
    settings = [type(autoencoder).__name__, config, autoencoder.normalisation, repr(autoencoder.tiling)]
    identity = sha256(json.dumps(settings, sort_keys=True, default=str))[:16]
    return Method(name, make, TASK.__eq__, identity + digest_of_weights(autoencoder), given, batch, task=TASK)


@torch.inference_mode()
def reconstruct(autoencoder: Autoencoder, x: Tensor) -> Tensor:
    """Pictures (B, C, H, W) there and back, C as the autoencoder has. Sides grow to multiples of its ratio."""
    ratio, (height, width) = autoencoder.ratio, (int(side) for side in x.shape[2:])
    padded = (ceil(height / ratio) * ratio, ceil(width / ratio) * ratio)
    canvas = Canvas((height, width), (height, width), padded)
    x = canvas.fit(x.to(autoencoder.device))
    return canvas.restore(autoencoder.decode(autoencoder.encode(x)))


def as_jpeg(x: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] as the published protocol stores it: cut down to 8 bits, then JPEG of quality 75."""
    made = []
    for pixels in (x * 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG")
        made.append(np.asarray(Image.open(file), dtype=np.float32) / 255)
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).to(x.device)


def kind(compat: str | None = None) -> Scoring:
    """How reconstructions are scored. compat: "alphavae" for the roundings of the published protocol."""
    if compat not in (None, "alphavae"):
        raise InputError(f"compat={compat!r} is not known: use alphavae, or leave it out.")
    return Scoring(
        f"{TASK} {compat}" if compat else TASK,
        (PSNR, SSIM, LPIPS_COLUMN, *WHOLE),
        partial(score, jpeg=bool(compat)),
        SETS,
        partial(composites, jpeg=bool(compat)),
        tuple(BACKGROUNDS),
        region="whole picture, composited on nine backgrounds",
        seed="none: the mean of the posterior is decoded",
        notes=NOTES + ((COMPAT,) if compat else ()),
        absent=NO_ALPHA,
    )


def composites(example: Example, made: Tensor, jpeg: bool = False) -> tuple[Tensor, Tensor]:
    """Prediction (1, 4, H, W), or (9, 4, H, W) on the backgrounds, and truth -> (9, 3, H, W) each."""
    true = _true(example)
    pair = made[:, :3] if len(made) > 1 else image.composites(made[0]), image.composites(true)
    return (as_jpeg(pair[0]), as_jpeg(pair[1])) if jpeg else pair


def score(example: Example, made: Tensor, networks: Networks, jpeg: bool = False) -> Figures:
    """NAME_BACKGROUND and their mean NAME; errors of colour and alpha where a prediction has alpha."""
    figures: Figures = {}
    if len(made) == 1:
        true = _true(example)[None]
        figures["rgba_psnr"] = float(image.psnr(made, true))
        figures["color_error"] = float(image.color_error(made, true))
        figures["alpha_mad"] = float(measure(made[0, 3], true[0, 3], names=("mad",))["mad"])
    for name, values in similarity(*composites(example, made, jpeg), networks).items():
        figures |= {f"{name}_{b}": value for b, value in zip(BACKGROUNDS, values.tolist(), strict=True)}
        figures[name] = float(values.mean())
    return figures


def _true(example: Example) -> Tensor:
    """The picture that should come back, (4, H, W)."""
    true = example.truths[0]
    assert true is not None
    return true
