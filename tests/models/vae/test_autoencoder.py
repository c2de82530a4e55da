"""What every autoencoder does with batches: the same pictures together, alone and in pieces."""

import pytest
import torch

from omnialpha.models.vae.alphavae import AlphaVAE
from omnialpha.models.vae.tiling import Tiling


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    made = AlphaVAE(8, 4, [1, 2, 2], 1, latents_mean=[0.3, -0.2, 0.1, 0.5], latents_std=[0.5, 2.0, 1.5, 0.7])
    for parameter in made.requires_grad_(False).parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    return made.double().eval()


class Seen:
    """Counts and sizes of the batches that a part of the network is given."""

    def __init__(self, part):
        self.shapes = []
        self.hook = part.register_forward_pre_hook(lambda module, given: self.shapes.append(tuple(given[0].shape)))

    def __enter__(self):
        return self.shapes

    def __exit__(self, *_):
        self.hook.remove()


@pytest.fixture
def batch():
    return torch.rand(5, 4, 12, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_a_batch_is_its_pictures_one_by_one(vae, batch):
    latents = vae.encode(batch)
    assert (latents - torch.cat([vae.encode(x[None]) for x in batch])).abs().max() <= 1e-13
    pictures = vae.decode(latents)
    assert pictures.shape == batch.shape
    assert (pictures - torch.cat([vae.decode(z[None]) for z in latents])).abs().max() <= 1e-7
    assert latents.std() > 0.1 and pictures.std() > 0.1


@pytest.mark.parametrize(
    ("limit", "counts"), [(None, [5]), (10**9, [5]), (2 * 240, [2, 2, 1]), (3 * 240 - 1, [2, 2, 1]), (1, [1] * 5)]
)
def test_pieces_hold_no_more_pixels_than_allowed(vae, batch, limit, counts):
    wanted = vae.encode(batch)
    shown = vae.decode(wanted)
    try:
        vae.max_batch_pixels = limit
        with Seen(vae.encoder) as encoded, Seen(vae.decoder) as decoded:
            made = vae.encode(batch)
            pictures = vae.decode(wanted)
    finally:
        vae.max_batch_pixels = None
    assert [shape[0] for shape in encoded] == [shape[0] for shape in decoded] == counts
    if len(counts) == 1:
        assert torch.equal(made, wanted) and torch.equal(pictures, shown)
    assert (made - wanted).abs().max() <= 1e-13 and (pictures - shown).abs().max() <= 1e-7


def test_tiles_and_pieces_together(vae, batch):
    """The pixels of a piece are counted in tiles, for that is what runs at a time."""
    wanted = vae.encode(batch)
    try:
        vae.tiling, vae.max_batch_pixels = Tiling(8, 4), 2 * 64
        with Seen(vae.encoder) as encoded, Seen(vae.decoder) as decoded:
            vae.encode(batch)
            vae.decode(wanted)
        assert {shape[2:] for shape in encoded} == {(8, 8)} and {shape[2:] for shape in decoded} == {(2, 2)}
        assert [s[0] for s in encoded] == [s[0] for s in decoded] == [2, 2, 1] * (2 * 4)
        vae.tiling = Tiling(32, 16)
        vae.max_batch_pixels = None
        assert torch.equal(vae.encode(batch), wanted)
    finally:
        vae.tiling = vae.max_batch_pixels = None


def test_sides_that_are_no_multiples_are_an_invariant(vae, batch):
    with pytest.raises(AssertionError, match="not 4 n"):
        vae.encode(batch[..., :18])
