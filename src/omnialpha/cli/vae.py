"""`omnialpha vae`: an RGBA autoencoder from one for RGB, and the figures of backgrounds that its training needs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from omnialpha.cli.options import Options, command
from omnialpha.errors import InputError
from omnialpha.files import atomic_folder

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from omnialpha.models.vae.autoencoder import Autoencoder

TOLERANCE = 1e-5  # of pixels in [0, 1], float32: how far a new autoencoder may be from the one it was made from
SIDE = 64  # pixels of the pictures that this is tried on, at least
SOURCE = "a VAE for RGB: its folder, a model's, or a stored id"

app = typer.Typer(no_args_is_help=True, help="Make an autoencoder for RGBA, and measure backgrounds for its training.")


@command(app, "quiet", "json")
def init(
    source: Annotated[str, typer.Argument(metavar="SRC", help=SOURCE, show_default=False)],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="the new folder", show_default=False)],
    options: Options,
    force: Annotated[bool, typer.Option("--force", help="replace the VAE that is there")] = False,
) -> None:
    """Give a VAE for RGB an alpha channel: unseen on the way in and opaque on the way out, until it is trained."""
    from omnialpha.cli.progress import Messages, duration, silence_libraries

    silence_libraries()  # before the libraries are imported
    from omnialpha.models.checkpoints import folders
    from omnialpha.models.vae.alphavae import load_vae, opaque_initialization, write

    began = time.monotonic()
    folder, destination = folders.vae_folder(source), destination.expanduser().absolute()
    check_destination(destination, folder, force)
    rgb = load_vae(folder, stored_dtype(folder))
    if rgb.config.channels != 3:
        raise InputError(f"{folder} has {rgb.config.channels} channels already: only a VAE for RGB is given an alpha.")
    with atomic_folder(destination) as new:  # opened again and tried, and named only if it is right
        write(opaque_initialization(rgb), new, folder)
        figures = compare(load_vae(folder), load_vae(new))
        if not max(figures.values()) <= TOLERANCE:  # NaN is not
            found = "RGB differs by {rgb:.1e} and alpha from 1 by {alpha:.1e}".format(**figures)
            raise InputError(f"{folder} cannot be given an alpha channel, as {found}: restore its weights.")
    said = "RGB differs by at most {rgb:.1e}, alpha from 1 by at most {alpha:.1e}"
    Messages(options.quiet).say(said.format(**figures))
    name = json.loads((destination / "config.json").read_text())["_class_name"]
    seconds = round(time.monotonic() - began, 3)
    if options.json:
        print(json.dumps({"output": str(destination), "class": name, **figures, "seconds": seconds}))
    elif not options.quiet:
        print(f"wrote {destination} ({name}, 4 channels) in {duration(seconds)}")


def check_destination(destination: Path, source: Path, force: bool) -> None:
    """InputError where the new folder would take the place of something else than a VAE, or of the source."""
    resolved = source.resolve()
    if destination.resolve() in (resolved, *resolved.parents):
        raise InputError(f"{destination} holds {source}, which is read: choose another folder.")
    if not destination.exists() or (destination.is_dir() and not any(destination.iterdir())):
        return
    if not force:
        raise InputError(f"{destination} exists: choose another folder, or replace it with --force.")
    if not (destination / "config.json").is_file():
        raise InputError(f"{destination} is no VAE folder, so it is not replaced: choose another.")


def stored_dtype(folder: Path) -> torch.dtype:
    """Of most of the weights in a VAE's folder, which the new one keeps."""
    import torch

    from omnialpha.models.checkpoints.convert import TYPES
    from omnialpha.models.checkpoints.headers import DIFFUSERS_STEM, read_weights
    from omnialpha.models.vae.alphavae import CLASSES, read_config

    read_config(folder, CLASSES)  # another kind of model is refused as such, whatever its weights are called
    names = [entry.dtype for entry in read_weights(folder, DIFFUSERS_STEM).values()]
    return getattr(torch, TYPES.get(max(set(names), key=names.count), "float32"))


def compare(rgb: Autoencoder, rgba: Autoencoder) -> dict[str, float]:
    """Largest differences of reconstructed pixels, not clamped: "rgb" of the two VAEs, whatever the alpha that goes
    in, and "alpha" from 1.
    """
    import torch

    x = trial(-(-SIDE // rgb.ratio) * rgb.ratio)
    worst = torch.zeros(2)
    with torch.no_grad():
        wanted = rgb.reconstruct(rgb.moments(x[:, :3])[0])
        for alpha in (torch.ones_like(x[:, 3:]), x[:, 3:]):
            made = rgba.reconstruct(rgba.moments(torch.cat([x[:, :3], alpha], dim=1))[0])
            found = torch.stack([(made[:, :3] - wanted).abs().max(), (made[:, 3] - 1).abs().max()]) / 2  # from [-1, 1]
            worst = torch.maximum(worst, found)
    return dict(zip(("rgb", "alpha"), worst.tolist(), strict=True))


def trial(side: int) -> Tensor:
    """(2, 4, side, side) in [0, 1]: noise, and ramps with stripes and a disk; alpha of all values."""
    import torch

    noise = torch.rand(4, side, side, generator=torch.Generator().manual_seed(0))
    y, x = torch.meshgrid(*[torch.linspace(0, 1, side)] * 2, indexing="ij")
    disk = ((y - 0.5) ** 2 + (x - 0.5) ** 2 < 0.1).float()
    stripes = (torch.arange(side) // 4 % 2).float().expand(side, side)
    return torch.stack([noise, torch.stack([y, x * (1 - disk), stripes, (x + y) / 2])])


@command(app, "quiet", "json", name="background-stats")
def background_stats(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="RGB pictures, in any tree", show_default=False)],
    options: Options,
) -> None:
    """Measure the backgrounds of a folder, for the table `background` of a recipe that trains an autoencoder."""
    import torch

    from omnialpha.cli.progress import open_bar
    from omnialpha.data.records.folders import background_moments, find

    files, nothing = find(folder), torch.zeros(2, 3, dtype=torch.float64)
    with open_bar(options.quiet) as bar:
        total = sum(bar.track(background_moments(files), len(files), description="pictures"), nothing)
    mean, square = (total / len(files)).tolist()
    if options.json:
        print(json.dumps({"folder": str(folder), "pictures": len(files), "mean": mean, "square": square}))
    else:
        print(f"[background]  # of {len(files):,} pictures, in [-1, 1]")
        print(f"mean = [{', '.join(f'{v:.4f}' for v in mean)}]")
        print(f"square = [{', '.join(f'{v:.4f}' for v in square)}]")
