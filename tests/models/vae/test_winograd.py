"""The strip-wise convolution against torch's own, in double precision."""

import os
from threading import get_ident

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from omnialpha.models.vae import winograd
from omnialpha.models.vae.alphavae import AlphaVAE
from omnialpha.models.vae.blocks import RMSNorm, Upsample, activated, convolved


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def close(made, wanted):
    return (made - wanted).square().mean().sqrt() < 5e-6 * wanted.square().mean().sqrt()


@pytest.mark.parametrize("taps", [2, 3])
def test_the_transforms_make_a_correlation(taps):
    data, filters, sums = winograd._winograd(taps)
    d, g = torch.randn(winograd.TILE + taps - 1).double(), torch.randn(taps).double()
    wanted = torch.stack([d[i : i + taps] @ g for i in range(winograd.TILE)])
    assert (sums @ ((filters @ g) * (data @ d)) - wanted).abs().max() < 1e-13


@pytest.mark.parametrize(("height", "width"), [(4, 4), (8, 64), (64, 12), (132, 40), (8, 1028)])
@pytest.mark.parametrize("channels", [(64, 64), (96, 192), (64, 4), (96, 1)])
@torch.no_grad()
def test_equals_the_plain_convolution(threads, height, width, channels):
    conv, norm = nn.Conv2d(*channels, 3, padding=1), RMSNorm(channels[0])
    nn.init.normal_(norm.gamma)
    x = torch.randn(2, channels[0], height, width)
    x[0, :, 1, 2] = 0  # a pixel without a direction
    add = torch.randn(2, channels[1], height, width)
    assert winograd._suits(x, conv)
    wanted = conv.double()(activated(norm.double(), x.double()))
    made = convolved(norm.float(), conv.float(), x)
    assert close(made, wanted)
    torch.testing.assert_close(convolved(norm, conv, x, add.clone()), made + add)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (8, 64), (132, 20)])
@torch.no_grad()
def test_doubling_equals_upsampling_then_convolution(threads, height, width):
    layer, x = Upsample(128), torch.randn(2, 128, height, width)
    assert winograd._suits(x, layer)
    grown = F.interpolate(x.double(), scale_factor=2.0, mode="nearest-exact")
    wanted = F.conv2d(grown, layer.weight.double(), layer.bias.double(), padding=1)
    made = layer(x)
    assert made.is_contiguous(memory_format=torch.channels_last) and close(made, wanted)


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
    assert winograd._suits(x, conv)
    assert not winograd._suits(x.bfloat16(), conv)
    assert not winograd._suits(x[..., :7], conv)
    assert winograd._suits(x, nn.Conv2d(64, 4, 3, padding=1))
    assert not winograd._suits(x, nn.Conv2d(64, 32, 3, padding=1))
    with torch.enable_grad():
        assert not winograd._suits(x, conv) and winograd.convolve(x, conv) is None


# ---- threads --------------------------------------------------------------------------------------------------------


def test_jobs_are_done_once_each_by_threads_that_compute_alone(threads):
    done, seen = [], set()

    def work(jobs):
        for job in jobs:
            seen.add((get_ident(), torch.get_num_threads(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
            done.append(job)

    with torch.inference_mode():
        winograd._share(range(100), work)
        assert sorted(done) == list(range(100))
        assert {case[1:] for case in seen} == {(1, False, True)}
        assert (get_ident() in {case[0] for case in seen}) == (threads == 1)
    assert torch.get_num_threads() == threads
    with pytest.raises(ZeroDivisionError), torch.no_grad():
        winograd._share(range(100), lambda jobs: [1 // (job - 70) for job in jobs])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes of this kind here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@torch.no_grad()
def test_a_forked_process_has_threads_of_its_own(threads):
    conv, x = nn.Conv2d(64, 64, 3, padding=1), torch.randn(1, 64, 256, 64)
    wanted = winograd.convolve(x, conv)
    child = os.fork()
    if not child:
        os._exit(winograd._pool.cache_info().currsize)
    assert os.waitpid(child, 0)[1] == 0
    assert threads == 1 or winograd._pool.cache_info().currsize
    assert torch.equal(winograd.convolve(x, conv), wanted)
