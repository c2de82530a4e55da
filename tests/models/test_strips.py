"""The strip-wise convolution against torch's own, in double precision."""

import pytest
import torch
from torch import nn

from omnialpha.models import strips
from omnialpha.models.codec_blocks import RMSNorm, activated, convolved
from omnialpha.models.vae import AlphaVAE


@pytest.mark.parametrize(("height", "width"), [(4, 4), (8, 64), (64, 12), (132, 40), (20, 2048)])
@pytest.mark.parametrize("channels", [(64, 64), (96, 192)])
@torch.no_grad()
def test_equals_the_plain_convolution(height, width, channels):
    conv, norm = nn.Conv2d(*channels, 3, padding=1), RMSNorm(channels[0])
    nn.init.normal_(norm.gamma)
    x = torch.randn(2, channels[0], height, width)
    add = torch.randn(2, channels[1], height, width)
    assert strips.suits(x, conv)
    wanted = conv.double()(activated(norm.double(), x.double()))
    made = convolved(norm.float(), conv.float(), x)
    assert (made - wanted).square().mean().sqrt() < 5e-6 * wanted.square().mean().sqrt()
    torch.testing.assert_close(convolved(norm, conv, x, add.clone()), made + add)


@torch.no_grad()
def test_the_codec_leaves_its_inputs_alone():
    vae = AlphaVAE(base_dim=64, dim_mult=[1, 2], num_res_blocks=1, z_dim=64)
    x, z = torch.rand(1, 4, 32, 32), torch.randn(1, 64, 16, 16)
    kept = x.clone(), z.clone()
    vae.encode(x), vae.decode(z)
    assert torch.equal(x, kept[0])
    assert torch.equal(z, kept[1])


@torch.no_grad()
def test_only_where_it_is_exact_and_worth_it():
    conv, x = nn.Conv2d(64, 64, 3, padding=1), torch.randn(1, 64, 8, 8)
    assert strips.suits(x, conv)
    assert not strips.suits(x.bfloat16(), conv)
    assert not strips.suits(x[..., :7], conv)
    assert not strips.suits(x, nn.Conv2d(64, 4, 3, padding=1))
    with torch.enable_grad():
        assert not strips.suits(x, conv)
