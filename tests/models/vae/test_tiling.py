"""Tiles: unchanged where they may be, without a seam where they are not."""

import numpy as np
import pytest
import torch

from omnialpha import rgba
from omnialpha.data.synthetic import layers as synthetic
from omnialpha.errors import InputError
from omnialpha.models.checkpoints.folders import BUNDLED
from omnialpha.models.vae.alphavae import AlphaVAE, load_vae
from omnialpha.models.vae.tiling import Tiling, _windows, tiled

LENGTHS = [(9, 8, 2), (8, 8, 4), (13, 8, 2), (14, 8, 2), (15, 8, 2), (20, 8, 4), (23, 8, 1), (97, 16, 8), (5, 8, 2)]


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("length", "tile", "overlap"), LENGTHS)
def test_weights_sum_to_one_and_fade_out_at_inner_edges(length, tile, overlap):
    made = 8
    windows = _windows(length, tile, overlap, made)
    total = torch.zeros(length * made, dtype=torch.float64)
    for start, weights in windows:
        assert len(weights) == min(tile, length) * made and (weights >= 0).all() and weights.max() <= 1
        total[start * made : (start + tile) * made] += weights
        if len(windows) > 1:
            assert start == 0 or weights[0] < 0.01
            assert start + tile == length or weights[-1] < 0.01
            assert weights.diff().abs().max() < 4 / (overlap * made), "no step"
    assert (total - 1).abs().max() < 1e-14
    starts = [start for start, _ in windows]
    assert starts[0] == 0 and starts[-1] == max(length - tile, 0) and starts == sorted(set(starts))
    assert all(b - a <= tile - overlap for a, b in zip(starts[:-1], starts[1:], strict=True))


@pytest.mark.parametrize("size", [(5, 7), (8, 30), (33, 9), (23, 41)])
def test_a_linear_codec_without_overlap_between_patches_is_unchanged(size):
    """Latents of patches on their own, linear: any tiling gives what the whole picture gives."""
    torch.manual_seed(1)
    down = torch.nn.Conv2d(4, 6, 4, stride=4).double().requires_grad_(False)
    up = torch.nn.ConvTranspose2d(6, 4, 4, stride=4).double().requires_grad_(False)
    x = noise(2, 4, size[0] * 4, size[1] * 4)
    seen = []

    def watched(part):
        seen.append(part.shape)
        return down(part)

    z = tiled(watched, x, 8, 3, (4, 1))
    assert z.shape == (2, 6, *size) and (z - down(x)).abs().max() < 1e-12
    assert max(s[2] for s in seen) <= 32 and max(s[3] for s in seen) <= 32
    y = tiled(up, z, 8, 3, (1, 4))
    assert y.shape == x.shape and (y - up(z)).abs().max() < 1e-12
    assert (tiled(lambda part: torch.full_like(part, 0.7), z, 8, 3) - 0.7).abs().max() < 1e-15


def test_half_precision_tiles_are_summed_in_float32():
    x = noise(1, 1, 40, 40).bfloat16()
    made = tiled(lambda part: part, x, 16, 8)
    assert made.dtype == torch.float32 and (made - x.float()).abs().max() < 1e-6


@pytest.mark.parametrize("tiling", [Tiling(100, 24), Tiling(96, 20), Tiling(96, 0), Tiling(96, 56)])
def test_tiles_that_do_not_fit_the_codec(tiling):
    with pytest.raises(InputError, match=f"tiles of {tiling.tile} px with an overlap of {tiling.overlap} px"):
        tiling.positions(8)
    assert Tiling(96, 48).positions(8) == (12, 6)


# ---- the bundled VAE ----


@pytest.fixture(scope="module")
def nano():
    return load_vae(BUNDLED["nano"] / "vae").requires_grad_(False)


@pytest.fixture(autouse=True)
def untiled(nano):
    yield
    nano.tiling = None


def scene(kind, size=(192, 256), seed=0):
    """A procedural layer (1, 4, H, W) in [0, 1]."""
    picture, _ = synthetic.draw(kind, np.random.default_rng(seed), max(size))
    return torch.from_numpy(picture).permute(2, 0, 1)[None, :, : size[0], : size[1]].float() / 255


def psnr(a, b):
    return rgba.psnr(rgba.premultiply(a)[0], rgba.premultiply(b)[0])


def test_a_tile_as_large_as_the_picture_changes_no_bit(nano):
    x = scene("smoke")
    z = nano.encode(x)
    shown = nano.decode(z)
    nano.tiling = Tiling(256, 64)
    assert torch.equal(nano.encode(x), z) and torch.equal(nano.decode(z), shown)


@pytest.mark.parametrize("kind", ["star", "hair", "smoke", "glass"])
def test_tiles_are_near_the_whole(nano, kind):
    x = scene(kind)
    z = nano.encode(x)
    shown = nano.decode(z)
    nano.tiling = Tiling(128, 32)
    assert 0 < (nano.encode(x) - z).square().mean() < 2e-3 * z.square().mean()
    tiled_picture = nano.decode(z)
    assert tiled_picture.min() >= 0 and tiled_picture.max() <= 1
    assert psnr(tiled_picture, shown) > 40


def smooth(size):
    """A picture of slow waves, nearly opaque, (1, 4, H, W) in [0, 1]."""
    rows, columns = torch.meshgrid(*(torch.linspace(0, 1, n) for n in size), indexing="ij")
    waves = [0.5 + 0.4 * torch.sin(3 * rows + k + 2 * columns * (k - 1)) for k in range(3)]
    return torch.stack([*waves, 0.9 + 0.1 * columns])[None]


def jumps(x):
    """Each step from one column to the next (W - 3), less what the steps beside it foretell, mean over the rest."""
    step = x.diff(dim=-1)
    return (step[..., 1:-1] - (step[..., :-2] + step[..., 2:]) / 2).abs().mean(dim=(0, 1, 2))


def in_parts(vae, z, side):
    """Decoded in parts of `side` pixels that know nothing of each other."""
    return torch.cat([vae.decode(part) for part in z.split(side // vae.ratio, dim=-1)], dim=-1)


def test_no_seam_anywhere(nano):
    side, z = 64, nano.encode(smooth((64, 320)))
    whole, cut = jumps(nano.decode(z)), jumps(in_parts(nano, z, side))
    nano.tiling = Tiling(side, side // 2)
    blended = jumps(nano.decode(z))
    assert blended.max() <= 1.1 * whole.max(), "no column steps more than without tiles"
    borders = torch.arange(side, 320, side) - 2
    assert cut[borders].mean() > 2 * blended[borders].mean(), "a hard cut is seen"


def test_a_random_released_network_has_no_seam_either():
    torch.manual_seed(0)
    vae = AlphaVAE(8, 4, [1, 2, 2, 2], 1).eval().requires_grad_(False)
    z = torch.nn.functional.interpolate(noise(1, 4, 4, 10).float(), scale_factor=4, mode="bicubic")
    shown, parts = vae.decode(z), in_parts(vae, z, 64)
    vae.tiling = Tiling(64, 32)
    made = vae.decode(z)
    whole, cut, blended = jumps(shown), jumps(parts), jumps(made)
    borders = torch.arange(64, 320, 64) - 2
    assert blended.max() <= 1.1 * whole.max() and blended[borders].mean() <= 1.1 * whole[borders].mean()
    assert cut[borders].mean() > 1.5 * whole[borders].mean()
    assert (made - shown).square().mean() < (parts - shown).square().mean()
