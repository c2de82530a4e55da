"""The one loop: resumption bit for bit, stopping without loss, and schedule, average and gradients by hand."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from omnialpha.errors import InputError
from omnialpha.training import loop
from omnialpha.training.loop import FitSettings, Objective, fit, learning_rate
from omnialpha.training.state import Average

WORKER = """
import sys, time, torch
from omnialpha.training.loop import FitSettings, Objective, fit

class Slow(Objective):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
    def forward(self, index):
        time.sleep(0.01)
        return {"loss": self.weight.square().sum()}
    def export(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "done").write_text("yes")

endless = FitSettings(10**6, 1e-4, sys.argv[1], device="cpu", log_every=1, save_every=10**6, trackers=[])
fit(Slow(), endless, quiet=True)
print("ended by itself")
"""


class Regression(Objective):
    """Fit y = x @ truth from noisy batches that depend on the index alone; `act` is called with every index."""

    def __init__(self, act=None):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.act, self.seen, self.validated = act, [], []

    def batch(self, index):
        g = torch.Generator().manual_seed(index)
        x = torch.randn(8, 4, generator=g)
        return x, x.sum(1, keepdim=True).sin() + 0.1 * torch.randn(8, 1, generator=g)

    def forward(self, index):
        self.seen.append(index)
        x, y = self.batch(index)
        loss = (self.layers(x) - y).square().mean()
        if self.act:
            loss = self.act(self, index, loss)
        return {"loss": loss, f"loss/{'even' if index % 2 == 0 else 'odd'}": loss.detach()}

    def validate(self, folder, step):
        assert not torch.is_grad_enabled() or self.layers[0].weight.requires_grad
        self.validated.append((step, self.layers[0].weight.detach().clone()))
        return {"val": float(step)}

    def export(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.state_dict(), folder / "weights.pt")


def settings(folder, **changes):
    base = {"steps": 6, "lr": 1e-2, "device": "cpu", "save_every": 2, "log_every": 1, "trackers": []}
    return FitSettings(output=str(folder), **(base | changes))


def checkpoint(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def assert_same(a, b):
    """Two nested structures hold the same bits."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def interrupt_at(last):
    """A SIGTERM to this process during step `last`."""

    def act(objective, index, loss):
        if index == last:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    return act


# ---- resumption and stopping ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", ["constant", "cosine", "linear"])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_resumed_run_equals_a_straight_one_bit_for_bit(tmp_path, ema, decay):
    common = {"ema": ema, "decay": decay, "decay_steps": 4, "warmup": 2, "weight_decay": 0.01, "grad_clip": 0.5}
    straight, resumed = Regression(), Regression()
    fit(straight, settings(tmp_path / "a", **common), quiet=True)

    first = Regression(interrupt_at(2))
    fit(first, settings(tmp_path / "b", **common), quiet=True)
    assert checkpoint(tmp_path / "b")["step"] == 3 and first.seen == [0, 1, 2]
    with torch.no_grad():  # whatever the weights were, the checkpoint's count
        for parameter in resumed.layers.parameters():
            parameter.zero_()
    fit(resumed, settings(tmp_path / "b", **common), quiet=True)
    assert resumed.seen == [3, 4, 5] and straight.seen == [0, 1, 2, 3, 4, 5]

    assert_same(dict(straight.state_dict()), dict(resumed.state_dict()))
    a, b = checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b")
    assert a["step"] == 6
    assert_same(a, b)
    exported = [torch.load(tmp_path / run / "model/weights.pt", weights_only=True) for run in "ab"]
    assert_same(*exported)
    assert not torch.equal(a["weights"]["layers.0.weight"], Regression().layers[0].weight)


def test_a_finished_run_is_not_run_again(tmp_path):
    fit(Regression(), settings(tmp_path), quiet=True)
    again = Regression()
    fit(again, settings(tmp_path), quiet=True)
    assert again.seen == [] and torch.equal(again.layers[0].weight, checkpoint(tmp_path)["weights"]["layers.0.weight"])


def test_a_longer_run_goes_on_from_a_finished_one(tmp_path):
    fit(Regression(), settings(tmp_path, steps=3), quiet=True)
    more = Regression()
    fit(more, settings(tmp_path, steps=5), quiet=True)
    assert more.seen == [3, 4] and checkpoint(tmp_path)["step"] == 5


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    fit(Regression(), settings(tmp_path, steps=1), quiet=True)
    other = Regression()
    other.layers[0] = nn.Linear(4, 5)
    with pytest.raises(InputError, match="checkpoint.pt does not fit this recipe at layers.0.weight"):
        fit(other, settings(tmp_path), quiet=True)


def test_an_average_that_is_switched_on_later_starts_from_the_weights(tmp_path):
    fit(Regression(), settings(tmp_path, steps=4), quiet=True)
    before = checkpoint(tmp_path)["weights"]["layers.0.weight"]
    fit(Regression(), settings(tmp_path, steps=5, ema=0.9), quiet=True)
    state = checkpoint(tmp_path)
    decay = min(0.9, 6 / 15)
    wanted = decay * before + (1 - decay) * state["weights"]["layers.0.weight"]
    assert (state["average"][0] - wanted).abs().max() < 1e-7


def becomes_nan(objective, index, loss):
    return loss * math.nan if index == 5 else loss


def has_no_gradient(objective, index, loss):
    """A finite loss whose gradient is not: the root of zero."""
    zero = objective.layers[2].bias - objective.layers[2].bias.detach()
    return loss + zero.sum().sqrt() if index == 5 else loss


@pytest.mark.parametrize(("act", "words"), [(becomes_nan, "loss became nan"), (has_no_gradient, "gradient became inf")])
def test_what_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path, act, words):
    with pytest.raises(InputError, match=f"the {words} at step 5: lower lr"):
        fit(Regression(act), settings(tmp_path / "bad", steps=9, save_every=2), quiet=True)
    fit(Regression(), settings(tmp_path / "good", steps=4), quiet=True)
    assert checkpoint(tmp_path / "bad")["step"] == 4
    assert_same(checkpoint(tmp_path / "bad")["weights"], checkpoint(tmp_path / "good")["weights"])
    assert not (tmp_path / "bad/model").exists(), "nothing is exported"
    assert len((tmp_path / "bad/log.jsonl").read_text().splitlines()) == 5


def test_handlers_are_given_back(tmp_path):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    fit(Regression(interrupt_at(0)), settings(tmp_path / "a"), quiet=True)
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    with pytest.raises(InputError):
        fit(Regression(becomes_nan), settings(tmp_path / "b", steps=9), quiet=True)
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_second_interruption_ends_at_once(tmp_path):
    def act(objective, index, loss):
        if index == 1:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return loss

    with pytest.raises(KeyboardInterrupt):
        fit(Regression(act), settings(tmp_path), quiet=True)


def test_minutes_end_a_run_early(tmp_path, monkeypatch):
    clock = iter(range(0, 10_000, 20))  # every look at the clock is 20 s later
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(clock))
    objective = Regression()
    fit(objective, settings(tmp_path, steps=50, minutes=1.0), quiet=True)
    assert objective.seen == [0, 1, 2, 3] and checkpoint(tmp_path)["step"] == 4
    assert (tmp_path / "model/weights.pt").is_file()


def test_sigterm_saves_exports_and_exits(tmp_path):
    worker = subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 600
        log = tmp_path / "log.jsonl"
        while not (log.is_file() and log.read_text().count("\n") >= 3):
            assert worker.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        worker.send_signal(signal.SIGTERM)
        out, _ = worker.communicate(timeout=600)
    finally:
        worker.kill()
    assert worker.returncode == 0 and out.strip() == "ended by itself"
    state = checkpoint(tmp_path)
    assert 3 <= state["step"] < 10**6 and state["step"] == len(log.read_text().splitlines())
    assert (tmp_path / "model/done").read_text() == "yes"
    assert not list(tmp_path.glob(".*.tmp"))


def test_validation_leaves_random_numbers_as_they_were(tmp_path):
    def noisy(objective, index, loss):
        return loss + torch.randn(()) * objective.layers[0].weight.sum()

    class Drawing(Regression):
        def validate(self, folder, step):
            (folder / f"picture-{step}").write_text("drawn")
            return {"val": float(torch.randn(5).sum())}

    for name, every in (("with", 2), ("without", 0)):
        torch.manual_seed(1)
        fit(Drawing(noisy), settings(tmp_path / name, validate_every=every), quiet=True)
    assert_same(checkpoint(tmp_path / "with"), checkpoint(tmp_path / "without"))
    assert len(list((tmp_path / "with").glob("picture-*"))) == 3


def test_parts_are_compiled_once_and_only_if_asked(tmp_path):
    class Compiled(Regression):
        made = 0

        def compile_parts(self):
            assert not self.seen
            self.made += 1
            self.layers.compile(backend="eager")

    for asked in (False, True):
        objective = Compiled()
        fit(objective, settings(tmp_path / str(asked), compile=asked), quiet=True)
        assert objective.made == asked
    assert_same(checkpoint(tmp_path / "False"), checkpoint(tmp_path / "True"))
    fit(Regression(), settings(tmp_path / "nothing", compile=True, steps=1), quiet=True)


def wandering(values):
    """Held-out figures in this order, one a validation."""

    class Wandering(Regression):
        def validate(self, folder, step):
            return {"val_loss": values[step // 2 - 1], "val_psnr": values[step // 2 - 1]}

    return Wandering()


def exported(folder):
    return torch.load(folder / "weights.pt", weights_only=True)


def test_the_last_exports_stay_and_change_nothing(tmp_path):
    kept = {"keep": 2, "keep_best": "val_loss", "validate_every": 2, "ema": 0.9}
    values = [3.0, 1.0, 2.0, 4.0, 5.0]
    fit(wandering(values), settings(tmp_path / "plain", steps=10, ema=0.9), quiet=True)
    fit(wandering(values), settings(tmp_path / "kept", steps=6, **kept), quiet=True)
    assert [p.name for p in sorted((tmp_path / "kept/exports").iterdir())] == ["000004", "000006"]
    fit(wandering(values), settings(tmp_path / "kept", steps=10, **kept), quiet=True)
    assert [p.name for p in sorted((tmp_path / "kept/exports").iterdir())] == ["000008", "000010"]
    assert_same(checkpoint(tmp_path / "plain"), checkpoint(tmp_path / "kept"))
    assert_same(exported(tmp_path / "plain/model"), exported(tmp_path / "kept/model"))
    for step in (8, 10):
        fit(Regression(), settings(tmp_path / str(step), steps=step, ema=0.9), quiet=True)
        assert_same(exported(tmp_path / f"kept/exports/{step:06d}"), exported(tmp_path / f"{step}/model"))


@pytest.mark.parametrize(("figure", "step"), [("val_loss", 4), ("val_psnr", 8)])
def test_the_best_export_is_of_the_whole_run(tmp_path, figure, step):
    values = [3.0, 1.0, math.nan, 4.0, 2.0]
    for steps in (6, 10):
        made = settings(tmp_path, steps=steps, keep_best=figure, validate_every=2)
        fit(wandering(values), made, quiet=True)
    assert json.loads((tmp_path / "best/best.json").read_text()) == {
        "step": step,
        "figure": figure,
        "value": values[step // 2 - 1],
    }
    fit(Regression(), settings(tmp_path / "straight", steps=step), quiet=True)
    assert_same(exported(tmp_path / "best"), exported(tmp_path / "straight/model"))
    assert not (tmp_path / "exports").exists() and not list(tmp_path.glob(".*"))


def test_no_half_export_is_left(tmp_path):
    class Failing(Regression):
        def export(self, folder):
            super().export(folder)
            if "000004" in folder.name:
                raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        fit(Failing(), settings(tmp_path, keep=1), quiet=True)
    assert [p.name for p in (tmp_path / "exports").iterdir()] == ["000002"] and checkpoint(tmp_path)["step"] == 4
    fit(Regression(), settings(tmp_path, keep=1, save_every=1), quiet=True)
    assert [p.name for p in (tmp_path / "exports").iterdir()] == ["000006"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"keep": -1}, "fit.keep=-1 is out of range"),
        ({"keep_best": "val_loss"}, "nothing is validated: give fit.validate_every"),
        ({"keep_best": "val_los", "validate_every": 1}, "fit.keep_best is 'val_los': use one of val"),
    ],
)
def test_mistakes_about_what_is_kept(tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        fit(Regression(), settings(tmp_path, **changes), quiet=True)


# ---- one step by hand ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_accumulation_is_the_mean_gradient(tmp_path, clip):
    """Two steps of four micro-batches each, against AdamW on the mean of the four losses."""
    objective = Regression()
    made = settings(tmp_path, steps=2, accumulate=4, grad_clip=clip, weight_decay=0.02, betas=(0.8, 0.95), warmup=4)
    figures = fit(objective, made, quiet=True)
    assert objective.seen == list(range(8))

    ours = Regression()
    optimizer = torch.optim.AdamW(ours.layers.parameters(), lr=1.0, betas=(0.8, 0.95), weight_decay=0.02)
    for step in range(2):
        optimizer.param_groups[0]["lr"] = 1e-2 * (step + 1) / 4
        losses = [ours(4 * step + i)["loss"] for i in range(4)]
        torch.stack(losses).mean().backward()
        gradient = torch.cat([p.grad.flatten() for p in ours.layers.parameters()])
        if clip:
            for parameter in ours.layers.parameters():
                parameter.grad *= min(1.0, clip / float(gradient.norm()))
        optimizer.step()
        optimizer.zero_grad()
    for a, b in zip(objective.layers.parameters(), ours.layers.parameters(), strict=True):
        assert (a - b).abs().max() < 1e-6
    assert figures["grad_norm"] == pytest.approx(float(gradient.norm()), rel=1e-4)
    assert figures["loss"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    assert torch.equal(objective.frozen, torch.ones(2))
    assert "frozen" not in checkpoint(tmp_path)["weights"]


def test_average_formula():
    parameter = nn.Parameter(torch.tensor([1.0, -2.0]))
    average = Average([parameter], 0.5)
    wanted = parameter.detach().clone().double()
    for step in range(1, 12):
        with torch.no_grad():
            parameter += step
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        wanted = decay * wanted + (1 - decay) * parameter.detach().double()
        assert (average.shadow[0] - wanted).abs().max() < 1e-5
    assert min(0.5, 12 / 21) == 0.5, "both branches were met"
    current = parameter.detach().clone()
    with pytest.raises(RuntimeError), average.applied():
        assert torch.equal(parameter, average.shadow[0]) and not torch.equal(parameter, current)
        raise RuntimeError
    assert torch.equal(parameter, current), "put back whatever happens"


def test_averages_of_half_precision_are_kept_in_float32():
    parameter = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    average = Average([parameter], 0.999)
    with torch.no_grad():
        parameter.fill_(2.0)
    for _ in range(20):
        average.update(100_000)
    assert average.shadow[0].dtype == torch.float32
    assert average.shadow[0] == pytest.approx(2 - 0.999**20, abs=1e-5)


def test_the_average_is_what_is_validated_and_exported(tmp_path):
    objective = Regression()
    fit(objective, settings(tmp_path, ema=0.9, validate_every=3), quiet=True)
    state = checkpoint(tmp_path)
    assert [step for step, _ in objective.validated] == [3, 6]
    exported = torch.load(tmp_path / "model/weights.pt", weights_only=True)["layers.0.weight"]
    assert torch.equal(objective.validated[-1][1], exported) and torch.equal(exported, state["average"][0])
    assert torch.equal(objective.layers[0].weight, state["weights"]["layers.0.weight"])
    assert not torch.equal(exported, state["weights"]["layers.0.weight"])


def test_learning_rates():
    base = FitSettings(steps=100, lr=2.0, output="", warmup=10)

    def rates(**changes):
        return [learning_rate(replace(base, **changes), step) for step in (0, 4, 9, 10, 55, 99)]

    assert rates() == pytest.approx([0.2, 1.0, 2.0, 2.0, 2.0, 2.0])
    assert rates(decay="cosine") == pytest.approx([0.2, 1.0, 2.0, 2.0, 1.0, 1 - math.cos(math.pi / 90)], abs=1e-6)
    assert rates(decay="linear", decay_steps=20) == pytest.approx([0.2, 1.0, 2.0, 2.0, 2.0, 0.1])
    assert learning_rate(replace(base, decay="linear", decay_steps=20), 90) == pytest.approx(1.0)
    assert learning_rate(replace(base, warmup=0), 0) == 2.0


def test_the_rate_of_each_step_is_the_one_used(tmp_path, monkeypatch):
    used = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self, *a: used.append(self.param_groups[0]["lr"]) or step(self, *a)
    )
    made = settings(tmp_path, steps=8, warmup=3, decay="cosine")
    fit(Regression(), made, quiet=True)
    assert used == pytest.approx([learning_rate(made, i) for i in range(8)]) and len(set(used)) == 7


# ---- what is reported ----------------------------------------------------------------------------------------------


def test_figures_are_means_over_the_steps_that_have_them(tmp_path):
    objective = Regression(lambda self, index, loss: loss * 0 + index)
    fit(objective, settings(tmp_path, steps=8, log_every=4, validate_every=8, lr=0.0), quiet=True)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [4, 8, 8]
    assert [row["loss"] for row in rows[:2]] == [1.5, 5.5]
    assert [row["loss/even"] for row in rows[:2]] == [1.0, 5.0] and [row["loss/odd"] for row in rows[:2]] == [2.0, 6.0]
    assert rows[2]["val"] == 8.0


def test_figures_of_micro_batches_are_means_too(tmp_path):
    objective = Regression(lambda self, index, loss: loss * 0 + index)
    figures = fit(objective, settings(tmp_path, steps=1, accumulate=3, lr=0.0), quiet=True)
    assert (figures["loss"], figures["loss/even"], figures["loss/odd"]) == (1.0, 1.0, 1.0)


def test_tensorboard_gets_the_same_figures(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    fit(Regression(), settings(tmp_path, steps=3, trackers=["tensorboard"]), quiet=True)
    events = event_accumulator.EventAccumulator(str(tmp_path / "omnialpha"))
    events.Reload()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [e.value for e in events.Scalars("loss")] == pytest.approx([row["loss"] for row in rows])
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3]


@pytest.mark.parametrize("able", [True, False])
def test_precision_auto_is_what_the_processor_has_instructions_for(tmp_path, monkeypatch, able):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: able)
    chosen = settings(tmp_path, precision="auto", device="cpu").precision
    assert chosen == ("bf16" if able else "no")


def test_runs_of_two_precisions_in_one_process(tmp_path):
    fit(Regression(), settings(tmp_path / "a", steps=1, precision="bf16"), quiet=True)
    fit(Regression(), settings(tmp_path / "b", steps=1, precision="no"), quiet=True)
    a, b = (checkpoint(tmp_path / run)["weights"]["layers.0.weight"] for run in "ab")
    assert a.dtype == torch.float32 and not torch.equal(a, b) and (a - b).abs().max() < 0.03


def test_a_loss_goes_down(tmp_path):
    objective = Regression()
    fit(objective, settings(tmp_path, steps=150, lr=2e-2, save_every=1000, log_every=15), quiet=True)
    rows = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[-1] < 0.5 * rows[0]
