"""Estimates against what runs really hold, and against the published sizes of the large model."""

import copy
import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel

from omnialpha.loading import Setup, resolve
from omnialpha.models.checkpoints.folders import CARD
from omnialpha.models.runtime import estimate as estimating
from omnialpha.models.runtime.estimate import Job, estimate, measure_speed, memory_warning
from omnialpha.models.runtime.model_sizes import ModelSizes
from omnialpha.models.runtime.offload import size_of
from omnialpha.models.runtime.placement import Placement
from omnialpha.models.transformer.model import MultiImageTransformer
from omnialpha.models.transformer.positions import Layout
from omnialpha.models.vae.alphavae import AlphaVAE
from omnialpha.tasks import TASKS
from released import write_base
from scripts import benchmark

Peak = benchmark("common/memory").Peak

ONE = Layout(((64, 64),), ((64, 64),))  # two pictures of 1024 x 1024 px


@pytest.fixture(autouse=True)
def one_thread():
    """What counts tensors and operations sees those of this thread alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_counter_counts():
    with Peak() as peak:
        x = torch.ones(1000)
        y = x + 1
        del x
        y.view(10, 100).add_(1)
        z = y * 2
    assert peak.most == 8000 and peak.now == 8000
    del z
    assert peak.now == 4000


def example(name, side):
    picture = torch.rand(4, side, side, generator=torch.Generator().manual_seed(0))
    given = {"composite": picture, "rough": picture, "layers": 3, "prompt": "a red mug", "size": (side, side)}
    return TASKS[name].example(**{k: given[k] for k in NEEDS[name]})


def sizes_of(model):
    """The sizes of a model in memory, before it is placed."""
    text, dtype = model.text_encoder, str(model.transformer.dtype).removeprefix("torch.")
    return ModelSizes.planned(model.vae, model.transformer, text.model, text.picture_pixels, dtype, tabulated=False)


NEEDS = {
    "matting_auto": ("composite",),
    "decompose_auto": ("composite", "layers"),
    "text_to_image": ("prompt", "size"),
    "removal_rough": ("composite", "rough"),
}


@torch.inference_mode()
def measured(model, examples, guided):
    """Bytes of each stage of a run, with what it was given."""
    fitted = [[model.canvas(e).fit(picture) for picture in e.inputs] for e in examples]
    with Peak() as encoding:
        model._encode(fitted)
    negatives = [""] * len(examples) if guided else None
    tokens = model.text_encoder.tokenize([e.instruction for e in examples], fitted, negatives)
    with Peak() as instruction:
        model.text_encoder(tokens)
    cond = model.condition(examples, guided)
    branches = [cond, cond.negative] if guided else [cond]
    x = model.noise(cond)
    with Peak() as transformer:
        velocity = model.guided(cond, 2.0 if guided else 1.0)
        for t in (1.0, 0.5):
            velocity(x, torch.full((len(examples),), t))
    with Peak() as decoding:
        model.pictures(x, cond)
    held = [t for c in branches for t in (c.inputs, c.text, *vars(c.positions).values()) if t is not None]
    pixels = 0 if tokens.pixel_values is None else tokens.pixel_values.nbytes
    return cond, {
        "autoencoder": max(encoding.most, decoding.most),
        "instruction": instruction.most + pixels,
        "transformer": transformer.most + sum(t.nbytes for t in held),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("task", "guided", "batch"),
    [
        ("matting_auto", False, 1),
        ("decompose_auto", True, 1),
        ("text_to_image", True, 1),
        ("removal_rough", False, 2),
    ],
)
@pytest.mark.parametrize("which", ["tiny", "nano"])
def test_the_peak_of_each_stage(request, tiny_model, which, task, guided, batch, dtype):
    model = copy.deepcopy(tiny_model if which == "tiny" else request.getfixturevalue("nano"))
    torch.nn.Module.to(model, dtype)
    cond, held = measured(model, [example(task, model.native_size()[0])] * batch, guided)
    sizes, layout = sizes_of(model), cond.layouts[0]
    words = cond.text.shape[1] - len(layout.inputs) * sizes.picture_tokens
    job = Job(sizes, layout, Placement(device="cpu"), 2, guided, batch, words)
    made = estimate(job)
    stored = sum(size_of(part) for part in (model.vae, model.transformer, model.text_encoder.model))
    assert made.weights_bytes == pytest.approx(stored, rel=0.001)
    for name, size in made.stages.items():
        assert 0.7 <= (size / estimating.MARGIN - made.weights_bytes) / held[name] <= 2.2, name
    assert made.peak_bytes == max(made.stages.values())


@pytest.fixture(scope="module")
def nano():
    from omnialpha.pipeline import OmniAlpha

    model = OmniAlpha.from_folder(None)
    model.use_finder(None)  # what it does, on the CPU, is not counted
    return model


# ---- the large model ----------------------------------------------------------------------------------------------


def released(tabulated):
    """The published sizes, in no memory."""
    text = {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584}
    with torch.device("meta"):
        transformer, vae = MultiImageTransformer(), AlphaVAE()
        model = Qwen2_5_VLModel(Qwen2_5_VLConfig(text_config=text, vision_config=vision))
    return ModelSizes.planned(vae, transformer, model, 384 * 384, "bfloat16", tabulated)


@pytest.fixture(scope="module")
def large():
    return released(tabulated=True)


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(estimating, "pick_device", lambda name: "cuda" if name == "auto" else name)


def job(sizes, layout=ONE, **placement):
    return Job(sizes, layout, Placement(**placement), steps=50, guided=True)


def test_the_large_model_in_numbers(large):
    whole = released(tabulated=False)
    assert whole.transformer.total == pytest.approx(20.43e9, rel=0.001)
    assert whole.transformer.total - large.transformer.total == pytest.approx(6.797e9, rel=0.001)
    assert large.table * 50 * 2 == pytest.approx(221e6, rel=0.01)  # bytes of a table of 50 times
    assert large.text.total == pytest.approx(7.75e9, rel=0.01)
    assert (large.layers, large.width, large.side, large.channels) == (60, 3072, 16, 96)


@pytest.mark.usefixtures("gpu")
def test_offloading_and_quantising_the_large_model(large):
    def peak(**placement):
        return estimate(job(large, **placement)).peak_bytes / 1e9

    weights = 2 * (large.transformer.total + large.text.total + large.vae.total) / 1e9
    assert weights < peak() < 48  # one 48 GB card, without offloading
    transformer = 2 * large.transformer.total / 1e9
    assert transformer < peak(offload="model") < transformer + 4
    assert peak(offload="disk") == peak(offload="group") < 4
    assert peak(quantize="int8", offload="model") < 18 and peak(quantize="nf4", offload="model") < 12
    assert peak(dtype="float32") > 1.9 * peak()
    hosts = {offload: estimate(job(large, offload=offload)).host_bytes / 1e9 for offload in ("none", "model", "disk")}
    assert hosts == {"none": 0, "model": pytest.approx(weights, rel=0.01), "disk": 0}
    other = estimate(job(large, offload="disk", dtype="float16"))  # not the files' own: it is all converted first
    assert other.host_bytes == pytest.approx(weights * 1e9 + 2 * 6.797e9, rel=0.01)
    assert estimate(job(large, device="cpu", offload="group")).peak_bytes == pytest.approx(
        estimate(job(large, device="cpu")).peak_bytes
    )


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("free", "settings", "fix"),
    [
        (48, {}, None),
        (40, {}, "use --offload model."),
        (24, {}, "use --offload group."),
        (2, {}, "no setting helps, use a device with"),
        (48, {"dtype": "float32"}, "use --dtype bfloat16."),  # main memory holds no float32 of it
        (8, {"device": "cpu"}, "use --offload disk."),
        (24, {"device": "cpu", "dtype": "float32"}, "use --offload disk."),
        (60, {"device": "cpu", "dtype": "float32"}, "use --dtype bfloat16."),
    ],
)
def test_what_does_not_fit_is_said_with_what_would(large, free, settings, fix):
    made = estimate(job(large, **settings))
    text = memory_warning(made, int(free * 1e9), int(80e9))
    if fix is None:
        assert text == ""
        return
    assert f"needs about {made.peak_bytes / 1e9:.1f} GB of {made.device}, which has {free:.1f} GB free" in text
    assert fix in f"{text}."


@pytest.mark.usefixtures("gpu")
def test_main_memory_counts_too(large):
    said = memory_warning(estimate(job(large, offload="model")), int(40e9), int(16e9))
    assert re.search(r"needs about 4\d\.\d GB of main memory, which has 16\.0 GB free, .*: use --offload disk$", said)
    # int8 cannot go to a disk, and main memory is too small for anything wider
    assert memory_warning(estimate(job(large, quantize="int8")), int(20e9), int(30e9)).endswith("use --offload model")
    said = memory_warning(estimate(job(large, quantize="int8", offload="group")), int(12e9), int(20e9))
    assert said.endswith("use --quantize nf4 --offload model")


def test_a_run_on_this_machine_fits(tiny_model):
    assert memory_warning(estimate(job(sizes_of(tiny_model), Layout(((2, 2),)), device="cpu"))) == ""


def test_the_size_of_the_picture_counts(tiny_model):
    """Measured of `matte` with nano, less the program's own .6 GB: 12, 24 and 64 MP raw, the same refined."""
    sizes, layout = sizes_of(tiny_model), Layout(((2, 2),), ((2, 2),))
    held = {False: {12: 0.9, 24: 1.9, 64: 5.0}, True: {12: 1.9, 24: 3.6, 64: 9.0}}
    for refined, peaks in held.items():
        for megapixels, measured in peaks.items():
            one = replace(job(sizes, layout, device="cpu"), pixels=megapixels * 10**6, refined=int(refined))
            made = estimate(one, speed=1e12)
            assert made.peak_bytes == made.stages["full size"]
            assert 0.9 <= made.peak_bytes / 1e9 / measured <= 1.35, (megapixels, refined)
            assert made.seconds == pytest.approx(megapixels * (0.7 + 0.45 * refined), abs=0.5)
    two = Layout(((2, 2),) * 2, ((2, 2),))
    layers = replace(job(sizes, two, device="cpu"), pixels=12 * 10**6, compared=True)
    assert 0.9 <= estimate(layers).peak_bytes / 1e9 / 2.05 <= 1.35
    small = estimate(replace(layers, pixels=2**10))
    assert small.peak_bytes < 20e6 and "(full size)" not in str(small)


@pytest.mark.usefixtures("gpu")
def test_full_size_work_beside_a_gpu_is_in_main_memory(large):
    less, more = (estimate(replace(job(large), pixels=pixels)) for pixels in (0, 10**7))
    assert more.host_bytes - less.host_bytes == 10**7 * (2 * 16 + 48) and "full size" not in more.stages


def test_a_picture_that_is_too_large_is_warned_about(tiny_model):
    sizes = sizes_of(tiny_model)
    made = estimate(replace(job(sizes, Layout(((2, 2),)), device="cpu"), pixels=10**8))
    need = made.peak_bytes
    assert memory_warning(made, need) == ""
    assert memory_warning(made, int(need / 1.3)) == (
        f"this run needs about {need / 1e9:.1f} GB of cpu, which has {need / 1.3e9:.1f} GB free, "
        "so it may be slow or be stopped: make the picture smaller"
    )


@pytest.mark.parametrize(
    ("task", "raw", "refine", "refined"),
    [
        ("matting_auto", False, True, 1),
        ("matting_auto", True, True, 0),
        ("matting_auto", False, False, 0),
        ("matting_alpha", False, True, 0),
        ("removal_rough", False, True, 0),
        ("decompose_auto", False, True, 2),
    ],
)
def test_a_forecast_knows_what_will_be_refined(tiny_model_folder, tmp_path, task, raw, refine, refined):
    shutil.copytree(tiny_model_folder, tmp_path / "model")
    card = tmp_path / "model" / CARD
    card.write_text(json.dumps(json.loads(card.read_text()) | {"refine": refine}))
    parts = resolve(tmp_path / "model")
    picture = torch.ones(4, 60, 80)
    given = {"decompose_auto": {"layers": 3}, "matting_alpha": {"alpha": picture}, "removal_rough": {"rough": picture}}
    request = TASKS[task].example(composite=picture, **given.get(task, {}))
    one = Setup(parts, Placement("cpu")).forecast(request, 1, False, raw).job
    assert (one.pixels, one.refined, one.compared) == (4800, refined, task == "decompose_auto")
    assert one.filled == (task in ("removal_rough", "decompose_auto"))


# ---- time -----------------------------------------------------------------------------------------------------------


def test_operations_are_those_that_are_counted(nano):
    """Of a step and of the VAE, with room for what is left out (projections, norms of convolutions, last block)."""
    example_ = example("decompose_auto", nano.native_size()[0])
    with torch.inference_mode():
        cond = nano.condition([example_])
        x = nano.noise(cond)
        with FlopCounterMode(display=False) as step:
            nano.velocity(x, torch.ones(1), cond)
        with FlopCounterMode(display=False) as autoencoder:
            nano._encode([[nano.canvas(example_).fit(p) for p in example_.inputs]])
            nano.pictures(x, cond)
    sizes, layout = sizes_of(nano), cond.layouts[0]
    words = cond.text.shape[1] - len(layout.inputs) * sizes.picture_tokens
    one = Job(sizes, layout, Placement(device="cpu"), 1, False, instruction_tokens=words)
    assert 0.7 < estimating._branch(one) / step.get_total_flops() < 1.5
    silent = replace(sizes, text=replace(sizes.text, total=0))
    assert 0.3 < estimating._once(replace(one, sizes=silent)) / autoencoder.get_total_flops() < 3


def test_time_grows_with_steps_and_falls_with_speed(large):
    slow = estimate(job(large, device="cpu"), speed=1e12)
    assert slow.seconds == pytest.approx(10 * estimate(job(large, device="cpu"), speed=1e13).seconds)
    twice = replace(slow.job, steps=100)
    assert 1.8 < estimate(twice, speed=1e12).seconds / slow.seconds < 2
    assert estimate(job(large, device="cpu")).seconds is None
    assert str(slow).startswith("cpu, bfloat16: about 4") and str(slow).endswith(f"{slow.seconds:.0f} s")


@pytest.mark.usefixtures("gpu")
def test_streaming_cannot_be_faster_than_the_bus(large):
    fast = estimate(job(large, offload="group"), speed=1e18)
    assert fast.seconds == pytest.approx(100 * 2 * large.transformer.total / estimating.BUS, rel=0.01)


def test_speed_is_measured():
    assert 1e8 < measure_speed(torch.device("cpu"), torch.float32, 0.01) < 1e14


# ---- from folders -----------------------------------------------------------------------------------------------


def test_folders_say_the_same_as_loaded_weights(tmp_path):
    from omnialpha.pipeline import OmniAlpha

    parts = resolve(write_base(tmp_path))
    model = OmniAlpha.from_parts(parts)
    read = ModelSizes.read(parts, "float32", tabulated=False)
    assert read == replace(sizes_of(model), stored="bfloat16")  # as the card says
    model.transformer.tabulate()
    assert ModelSizes.read(parts, "float32") == replace(sizes_of(model), stored="bfloat16")


def test_adapters_count(released_base, released_omnialpha):
    alone, adapted = resolve(released_base), resolve(released_omnialpha, base=released_base)
    less, more = (ModelSizes.read(parts).transformer for parts in (alone, adapted))
    factors = 3 * 8 * 2 * 4 * 32  # layers, modules, factors of rank 4 and width 32
    assert (more.total - less.total, more.group - less.group) == (factors, factors / 3)
