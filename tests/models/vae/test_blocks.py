"""The blocks of the 2-D autoencoder: cheaper than what is written in their source, and equal to it."""

import pytest
import torch
import torch.nn.functional as F

from omnialpha.models.vae.blocks import Decoder, Encoder, RMSNorm, Upsample


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 3)])
def test_doubling_is_upsampling_then_convolution(size):
    layer = Upsample(6).double()
    x = normal(2, 6, *size)
    wanted = F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest-exact"), layer.weight, layer.bias, padding=1)
    made = layer(x)
    assert made.shape == (2, 3, 2 * size[0], 2 * size[1])
    assert (made - wanted).abs().max() < 1e-14


def test_doubling_has_the_gradients_of_what_it_replaces():
    layer, x = Upsample(4).double(), normal(1, 4, 3, 5).requires_grad_(True)
    weigh = normal(1, 2, 6, 10, seed=1)

    def grads(y):
        return torch.autograd.grad((y * weigh).sum(), (x, layer.weight, layer.bias))

    doubled = F.interpolate(x, scale_factor=2.0, mode="nearest-exact")
    wanted = grads(F.conv2d(doubled, layer.weight, layer.bias, padding=1))
    assert all((a - b).abs().max() < 1e-13 for a, b in zip(grads(layer(x)), wanted, strict=True))


def test_norm_is_that_of_the_source_and_finite_at_zero():
    norm = RMSNorm(12).double()
    norm.gamma.data = normal(12, 1, 1, seed=2)
    x = normal(2, 12, 4, 5)
    x[0, :, 1, 1] = 0
    x[0, :, 2, 2] *= 1e-5  # far below what activations are, far above the floor
    made = norm(x)
    assert (made - F.normalize(x, dim=1) * 12**0.5 * norm.gamma).abs().max() < 1e-13
    assert (made[0, :, 1, 1] == 0).all()
    for dtype in (torch.float16, torch.bfloat16):
        half = norm.to(dtype)(x.to(dtype))
        assert half.dtype == dtype and half.isfinite().all() and (half[0, :, 1, 1] == 0).all()


@pytest.mark.parametrize("kind", [Encoder, Decoder])
def test_channels_stay_last_in_memory(kind):
    """One layer that gives them back in another order costs a reordering at each one after it."""
    torch.manual_seed(0)
    network = kind(3, 4, 8, [1, 2], 1).eval()
    layouts = {}

    def note(name):
        def hook(module, given, made):
            layouts[name] = made.is_contiguous(memory_format=torch.channels_last)

        return hook

    for name, module in network.named_modules():
        if name and not isinstance(module, torch.nn.ModuleList):
            module.register_forward_hook(note(name))
    network(normal(2, 3 if kind is Encoder else 8, 8, 12, dtype=torch.float32))
    assert len(layouts) > 20 and all(layouts.values()), [name for name, last in layouts.items() if not last]
