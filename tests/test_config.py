"""Typed configuration: right values pass unchanged, anything else is named together with the way out."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from omnialpha import config
from omnialpha.curation.recipe import CurationRecipe
from omnialpha.errors import InputError
from omnialpha.models.checkpoints.folders import Card
from omnialpha.training.run import KINDS


@dataclass(frozen=True)
class Inner:
    rate: float
    mode: Literal["fast", "slow"] = "fast"


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    count: int = 3
    flag: bool = False
    sizes: list[list[int]] = field(default_factory=list)
    pair: tuple[float, ...] = (0.9, 0.99)
    table: dict[str, float] = field(default_factory=dict)
    rows: dict[str, Inner] = field(default_factory=dict)
    limit: float | None = None
    free: dict[str, Any] = field(default_factory=dict)


GOOD = {"name": "n", "inner": {"rate": 0.5}}
RECIPE = """
name = "first"
count = 7
[inner]
rate = 1e-6
mode = "slow"
[table]
a = 1
"""


def build(**changes):
    return config.build(Outer, GOOD | changes)


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


# ---- building ------------------------------------------------------------------------------------------------------


def test_values_of_every_type():
    made = build(
        count=5, flag=True, sizes=[[96, 80], [1, 2]], pair=[0.5, 1], table={"x": 2}, limit=4,
        rows={"a": {"rate": 1, "mode": "slow"}}, free={"any": [1, "x", {"deep": True}]},
    )  # fmt: skip
    assert made == Outer(
        "n", Inner(0.5), 5, True, [[96, 80], [1, 2]], (0.5, 1.0), {"x": 2.0}, {"a": Inner(1.0, "slow")}, 4.0,
        {"any": [1, "x", {"deep": True}]},
    )  # fmt: skip
    for number in (*made.pair, made.table["x"], made.limit, made.rows["a"].rate):
        assert type(number) is float
    assert build(limit=None).limit is None
    assert build() == Outer("n", Inner(0.5))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"cuont": 4}, "unknown key 'cuont' in the recipe: did you mean 'count'"),
        ({"inner": {"rate": 1.0, "mod": "fast"}}, "unknown key 'inner.mod'.*'inner.mode'"),
        ({"rows": {"a": {"rat": 1.0}}}, "unknown key 'rows.a.rat'.*'rows.a.rate'"),
        ({"zzz": 4}, "unknown key 'zzz'.*did you mean '"),
        ({"count": 4.5}, "'count' is 4.5: it must be of type int"),
        ({"count": "4"}, "'count' is '4'.*int"),
        ({"count": True}, "'count' is True.*int"),
        ({"flag": 1}, "'flag' is 1.*bool"),
        ({"name": 3}, "'name' is 3.*str"),
        ({"limit": "none"}, "'limit' is 'none'.*float"),
        ({"limit": True}, "'limit' is True.*float"),
        ({"inner": 3}, "'inner' must be a table, not 3"),
        ({"inner": {"rate": "1e-6"}}, "'inner.rate' is '1e-6'.*float"),
        ({"inner": {"rate": 1.0, "mode": "medium"}}, "'inner.mode' is 'medium': use one of 'fast', 'slow'"),
        ({"sizes": [[1, 2], [3, "4"]]}, "'sizes' is '4'.*int"),
        ({"sizes": 96}, "'sizes' is 96.*list"),
        ({"pair": [0.5, "x"]}, "'pair' is 'x'.*float"),
        ({"table": {"x": "y"}}, "'table.x' is 'y'.*float"),
        ({"table": [1.0]}, "'table' is .*dict"),
        ({"inner": {}}, "lacks 'inner.rate'"),
    ],
)
def test_what_is_refused(values, words):
    with pytest.raises(InputError, match=words):
        build(**values)


def test_a_missing_key():
    with pytest.raises(InputError, match="the recipe lacks 'name': add it"):
        config.build(Outer, {"inner": {"rate": 1.0}})


# ---- files and overrides ---------------------------------------------------------------------------------------------


def test_a_recipe_without_overrides(recipe):
    made = config.build(Outer, config.load(recipe))
    assert made == Outer("first", Inner(1e-6, "slow"), 7, table={"a": 1.0})
    assert type(made.inner.rate) is float, "1e-6 is a number"


def test_overrides(recipe):
    overrides = [
        "inner.rate=2e-4", "name=runs/second one", "sizes=[[8, 16]]", "flag = true", "table.b=2", "limit=0.5",
        'rows.x={rate = 3.0}', "inner.mode='fast'", "count=8", "count=9",
    ]  # fmt: skip
    made = config.build(Outer, config.load(recipe, overrides))
    assert made == Outer(
        "runs/second one", Inner(2e-4, "fast"), 9, True, [[8, 16]], table={"a": 1.0, "b": 2.0}, limit=0.5,
        rows={"x": Inner(3.0)},
    )  # fmt: skip


def test_an_override_of_an_unknown_key_is_caught_like_any_other(recipe):
    with pytest.raises(InputError, match="'inner.ratte'.*'inner.rate'"):
        config.build(Outer, config.load(recipe, ["inner.ratte=1"]))


@pytest.mark.parametrize(
    ("override", "words"),
    [("count", "override 'count' has no '='"), ("count.deep=1", "'count.deep=1'.*'count'.*7.*table")],
)
def test_overrides_that_are_none(recipe, override, words):
    with pytest.raises(InputError, match=words):
        config.load(recipe, [override])


def test_files_that_are_no_recipe(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        config.load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = = 1")
    with pytest.raises(InputError, match="bad.toml is not valid TOML"):
        config.load(tmp_path / "bad.toml")
    (tmp_path / "bytes.toml").write_bytes(b"a = '\xff\xfe'")
    with pytest.raises(InputError, match="bytes.toml is not valid TOML"):
        config.load(tmp_path / "bytes.toml")


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "recipes").rglob("*.toml")), ids=lambda p: p.stem)
def test_every_recipe_of_the_project_fits_its_types(path):
    tree = config.load(path)
    if "sources" in tree:  # of curation
        config.build(CurationRecipe, tree).check()
        return
    made = config.build(KINDS[tree["kind"]], tree)
    assert made.fit.steps > 0 and made.batch > 0
    if tree["kind"] == "sft" and not made.lora:  # whose card is that of the model it begins with
        card = config.build(Card, made.card, "card.")
        sides = {side for size in made.sizes for side in size}
        assert all(side % card.grid.multiple == 0 for side in sides), "no training picture is resized"
        assert bool(made.start) != bool(made.transformer), "goes on from a model, or says what to make"
        if made.start:
            return
        assert made.transformer["in_channels"] == 4 * made.transformer["out_channels"]
        assert sum(made.transformer["axes_dims_rope"]) == made.transformer["attention_head_dim"]
        assert made.transformer["joint_attention_dim"] == made.text_encoder["text_dim"]


def test_a_recipe_extends_another(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "base.toml").write_text('name = "n"\ncount = 5\n[inner]\nrate = 0.5\nmode = "slow"\n[table]\nx = 1.0\n')
    (tmp_path / "sub/middle.toml").write_text('extends = "../base.toml"\ncount = 6\n[inner]\nrate = 0.25\n')
    (tmp_path / "sub/top.toml").write_text('extends = "middle.toml"\n[table]\ny = 2.0\n')
    made = config.build(Outer, config.load(tmp_path / "sub/top.toml", ["count=7"]))
    assert made == Outer("n", Inner(0.25, "slow"), 7, table={"x": 1.0, "y": 2.0})


def test_a_recipe_that_extends_itself_or_nothing(tmp_path):
    (tmp_path / "a.toml").write_text('extends = "b.toml"\n')
    (tmp_path / "b.toml").write_text('extends = "a.toml"\n')
    with pytest.raises(InputError, match="extends itself"):
        config.load(tmp_path / "a.toml")
    (tmp_path / "a.toml").write_text('extends = "c.toml"\n')
    with pytest.raises(InputError, match=r"c\.toml does not exist"):
        config.load(tmp_path / "a.toml")
