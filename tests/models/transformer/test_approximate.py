"""Approximations are asked for by name, and a wrong one is refused before anything is loaded."""

import copy

import pytest

from omnialpha.errors import InputError
from omnialpha.loading import load
from omnialpha.models.transformer.approximate import Approximations
from omnialpha.sampling import FULL_INTERVAL
from omnialpha.tasks import TASKS


def test_nothing_is_approximate_unless_asked():
    assert Approximations.parse({}) == Approximations(None, None, FULL_INTERVAL, None, None)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("first-block", Approximations(first_block=0.1)),
        ("taylor", Approximations(taylor=3)),
        ("guidance", Approximations(guidance=(0.2, 0.9))),
        ("vision", Approximations(vision=256)),
        ("tiles", Approximations(tiles=512)),
    ],
)
def test_a_name_alone_takes_the_default(name, wanted):
    assert Approximations.parse({name: ""}) == wanted


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"turbo": ""}, "'turbo'"),
        ({"taylor": "often"}, "taylor='often'"),
        ({"taylor": "0"}, "taylor='0'"),
        ({"guidance": "0.9-0.2"}, "guidance='0.9-0.2'"),
        ({"guidance": "0.5"}, "guidance='0.5'"),
        ({"first-block": "-1"}, "first-block='-1'"),
        ({"first-block": "", "taylor": ""}, "both"),
    ],
)
def test_what_cannot_be_meant_is_refused(given, named):
    with pytest.raises(InputError, match=named):
        Approximations.parse(given)
    with pytest.raises(InputError, match=named):
        load("no such folder", device="cpu", approximate=given)


def test_loading_applies_them(tiny_model_folder):
    given = {"first-block": "0.5", "guidance": "0.1-0.6", "vision": "16", "tiles": "64"}
    model = load(tiny_model_folder, device="cpu", approximate=given)
    assert model.transformer.is_cache_enabled
    assert model.guidance_interval == (0.1, 0.6)
    assert model.text_encoder.picture_pixels == 256
    assert (model.vae.tiling.tile, model.vae.tiling.overlap) == (64, 16)
    stack = model.run([TASKS["text_to_image"].example(prompt="a mug", size=(32, 32))], steps=3, guidance=2.0)[0]
    assert stack[0].rgba.isfinite().all()


def test_runs_do_not_inherit_the_step_cache_of_the_run_before(tiny_model_folder):
    model = load(tiny_model_folder, device="cpu", approximate={"taylor": "2"})
    request = [TASKS["text_to_image"].example(prompt="a mug", size=(32, 32))]
    first = model.run(request, steps=6, guidance=1.0)[0][0].rgba
    other = copy.copy(request[0])
    assert (model.run([other], steps=6, guidance=1.0)[0][0].rgba == first).all()


def test_tiles_that_do_not_fit_the_codec_are_refused(tiny_model_folder):
    with pytest.raises(InputError, match="tiles of 63"):
        load(tiny_model_folder, device="cpu", approximate={"tiles": "63"})
