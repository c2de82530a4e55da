"""From parts to a model that is ready: adapters with their schedules, swapped on a model that stays loaded."""

import pytest
import torch

from omnialpha.errors import InputError
from omnialpha.loading import load, swap
from omnialpha.tasks import TASKS
from released import write_lora


@pytest.fixture(scope="module")
def loras(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    return [write_lora(folder / name, 4, seed, 0.5) for name, seed in (("one", 1), ("two", 2))]


def request(size=(64, 64)):
    picture = torch.rand(4, *size, generator=torch.Generator().manual_seed(0))
    picture[3] = 1
    return TASKS["matting_auto"].example(composite=picture)


def run(model):
    return model.run([request()], steps=2, guidance=2.0, raw=True)[0][0].rgba


@pytest.mark.parametrize("offload", ["none", "model", "group"])
def test_swapped_adapters_equal_those_loaded_with_the_model(released_base, loras, offload):
    def fresh(lora=()):
        return load(released_base, lora=lora, device="cpu", dtype="float32", offload=offload)

    model = fresh()
    base = run(model)
    swap(model, f"{loras[0]}:0.5")
    assert torch.equal(run(model), run(fresh(f"{loras[0]}:0.5")))
    assert (run(model) - base).abs().max() > 1e-3
    swap(model, [str(path) for path in loras])
    assert torch.equal(run(model), run(fresh([str(path) for path in loras])))
    swap(model)
    assert torch.equal(run(model), base)


def test_a_few_step_adapter_brings_its_schedule_and_takes_it_away(released_base, loras):
    model = load(released_base, device="cpu", dtype="float32")
    own = model.card
    swap(model, f"{loras[0]}@lightning-4")
    defaults = model.card.defaults("matting_auto")
    assert (defaults.steps, defaults.guidance, model.card.shift.terminal) == (4, 1.0, 0.0)
    swap(model)
    assert model.card == own


def test_an_adapter_that_does_not_fit_leaves_the_model_as_it_was(released_base, loras, tmp_path):
    model = load(released_base, device="cpu", dtype="float32", lora=str(loras[0]))
    before, card = run(model), model.card
    with pytest.raises(InputError, match="nothing.safetensors"):
        swap(model, str(tmp_path / "nothing.safetensors"))
    assert torch.equal(run(model), before) and model.card == card


def test_dtype_is_the_cards_unless_said(released_base, tiny_model_folder):
    assert load(tiny_model_folder, device="cpu").transformer.dtype == torch.float32
    assert load(released_base, device="cpu").transformer.dtype == torch.bfloat16
    assert load(released_base, device="cpu", dtype=torch.float32).transformer.dtype == torch.float32


def test_a_run_fills_the_table_of_modulation_at_once(released_base):
    model = load(released_base, device="cpu", dtype="float32")
    expected = run(model)
    model.transformer.tabulate()
    visits = []
    add = model.transformer.table._add
    model.transformer.table._add = lambda times, *rest: visits.append(len(times)) or add(times, *rest)
    assert (run(model) - expected).abs().max() <= 1e-4
    assert visits == [2]
