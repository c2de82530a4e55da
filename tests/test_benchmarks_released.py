"""The benchmark of the released layout on tiny sizes: what it compares is equal, and it goes on where it stopped."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from scripts import benchmark


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return benchmark("released")


@pytest.fixture(scope="module")
def setup(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return script.Setup(script.options_of(["--quick"]), tmp_path_factory.mktemp("released"))


def column(table: Any, name: str) -> list[Any]:
    return [row[list(table.columns).index(name)] for row in table.rows]


def test_both_sides_are_equal_and_timed_by_part(script: ModuleType, setup: Any) -> None:
    differences = column(script.equality(setup), "difference")
    assert len(differences) == 3 and max(differences) < 1e-5
    table = script.whole_run(setup)
    *parts, whole = column(table, "ours, s")
    steps = setup.sizes.steps
    assert column(table, "n") == [1, steps, 1, 1]
    assert whole == pytest.approx(parts[0] + steps * parts[1] + parts[2])  # the median of two is their mean
    assert "seed 0" in table.about and "float32" in table.about and f"{setup.sizes.px} px" in table.about


def test_sides_that_differ_are_not_timed(script: ModuleType, setup: Any) -> None:
    weight = setup.bench.ours.transformer.proj_out.weight
    weight.mul_(1.01)
    try:
        with pytest.raises(SystemExit, match="The sides differ"):
            script.equality(setup)
    finally:
        weight.div_(1.01)


def test_exact_savings_are_exact(setup: Any) -> None:
    from common import savings

    (table,) = savings.exact(setup.bench, 64)
    assert len(table.rows) == 7 and max(column(table, "difference")) < 1e-5
    (table,) = savings.batching(setup.bench, [("tiny", setup.bench.ours, 32, 1)])
    assert column(table, "difference")[0] < 1e-5 and column(table, "a run takes") == ["one batch"]
    assert savings.twin(setup.bench.ours, condition_attention="cached").transformer.sees_zero  # it is another model
    (table,) = savings.blind(setup.bench, 32)
    assert [row[:2] for row in table.rows] == [[1, 1], [2, 1], [1, 2]]


def test_the_full_shape_goes_on_where_it_stopped(script: ModuleType, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "full.json"
    arguments = ["--full", "--device", "cpu", "--dtype", "float32", "--layers", "1", "--heads", "1", "--sides", "96"]
    arguments += ["--repeats", "1", "--json", str(path)]
    script.main(arguments)
    first = json.loads(path.read_text())
    assert all(row["seconds"] > 0 for row in first["rows"].values())
    exact = [row["difference"] for key, row in first["rows"].items() if "int8" not in key]
    assert len(exact) == 3 * 7 and all(difference < 1e-5 for difference in exact if difference is not None)
    again = dict(first, rows=dict(first["rows"]))
    key = next(key for key in first["rows"] if key.startswith("+ last block"))
    del again["rows"][key]
    path.write_text(json.dumps(again))
    capsys.readouterr()
    script.main(arguments)
    second = json.loads(path.read_text())["rows"]
    assert second.keys() == first["rows"].keys()
    assert {k: v for k, v in second.items() if k != key} == again["rows"]
    capsys.readouterr()
    script.main(["--full", "--from", str(path), "--document", str(document(tmp_path))])
    assert "A guided step of the released transformer's shape at 96 px" in capsys.readouterr().out
    assert "+ modulation from a table" in document(tmp_path).read_text()
    with pytest.raises(SystemExit, match="other settings"):
        script.main([*arguments, "--seed", "1"])


def document(folder: Path) -> Path:
    path = folder / "performance.md"
    if not path.exists():
        path.write_text("Before.\n\n<!-- full: begin -->old<!-- full: end -->\n\nAfter.\n")
    return path


def test_a_document_keeps_what_is_not_between_the_marks(script: ModuleType, tmp_path: Path) -> None:
    from common.documents import write_block
    from common.tables import Table

    table = Table("Title", "about", {"a": "", "b": ".2f"}, [["x", 1.0]])
    for _ in range(2):  # again is the same
        write_block(document(tmp_path), "full", [table], "python it.py")
        text = document(tmp_path).read_text()
        assert text.startswith("Before.\n\n<!-- full: begin -->\n\n### Title")
        assert text.endswith("Printed by `python it.py`.\n\n<!-- full: end -->\n\nAfter.\n")
        assert text.count("| x | 1.00 |") == 1 and "old" not in text
    write_block(document(tmp_path), "other", [table], "python it.py")
    added = document(tmp_path).read_text().removeprefix(text)
    assert added.startswith("\n<!-- other: begin -->") and added.endswith("<!-- other: end -->\n")


def test_a_table_that_has_grown_takes_its_own_place(script: ModuleType) -> None:
    from common.documents import grown
    from common.tables import Table

    one, two = Table("one", "", {"a": ""}), Table("two", "", {"a": ""})
    tables = grown(grown(grown([], one), two), one)
    assert [table.title for table in tables] == ["one", "two"] and tables[0] is one


def test_calls_take_turns_in_both_directions(script: ModuleType) -> None:
    from common.timing import in_turn

    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = in_turn(calls, 2, torch.device("cpu"))
    assert "".join(order) == "baabba" and [len(values) for values in seconds.values()] == [2, 2]


def test_every_section_has_its_place_in_the_document(script: ModuleType) -> None:
    text = script.DOCUMENT.read_text()
    assert all(f"<!-- {name}: begin -->" in text for name in (*script.SECTIONS, "full", "autoencoder"))


@pytest.mark.slow
def test_what_a_device_must_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted weights are those of the shapes; the larger the pictures, the wider the stages."""
    footprint, width, text = benchmark("footprint"), 128, 32
    words = {"vocab_size": 1000, "hidden_size": text, "intermediate_size": 64, "num_hidden_layers": 2}
    words |= {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": False}
    tower = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": text}
    small = {"text_config": words, "vision_config": tower}
    monkeypatch.setattr(footprint, "TEXT", small)
    cases = [footprint.Case(1, 1, 64), footprint.Case(1, 1, 128)]
    theirs, ours = (footprint.measure(side, cases, layers=2, heads=1) for side in footprint.SIDES)
    with torch.device("meta"):
        stock = footprint.AutoencoderKLQwenImage(input_channels=4)
        own = footprint.AlphaVAE()
    autoencoders = [sum(weight.numel() for weight in vae.parameters()) for vae in (stock, own)]
    block = 2 * 6 * width * (width + 1)  # modulation of image and text
    table = 2 * footprint.STEPS * 2 * 6 * width
    less = autoencoders[0] - autoencoders[1] + 1000 * text + 2 * block - table
    assert (theirs[cases[0]].weights - ours[cases[0]].weights) / 2 == pytest.approx(less, rel=1e-3)
    for held in (theirs, ours):
        near, far = (held[case].stages for case in cases)
        assert all(far[stage] > near[stage] > held[cases[0]].weights for stage in near)
    assert all(ours[case].peak < theirs[case].peak for case in cases)
    table = footprint.modes(128, layers=2, heads=1)
    needs = dict(zip(column(table, "setting"), column(table, "GPU, GB"), strict=True))
    assert needs["none"] > needs["--offload model"] >= needs["--offload group"] == needs["--offload disk"]
