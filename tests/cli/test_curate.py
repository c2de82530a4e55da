"""`omnialpha curate` on the command line: an estimate, a run, its report and its exit codes."""

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from omnialpha import config
from omnialpha.cli.main import app
from omnialpha.curation.recipe import CurationRecipe
from scripts import benchmark

canned_vlm, offline = benchmark("common/canned_vlm"), benchmark("curate_offline")
RECIPES = Path(__file__).parents[2] / "recipes"


def test_an_estimate_then_a_run(tmp_path: Path) -> None:
    offline.draw(tmp_path / "drawn", 3)
    vlm = canned_vlm.CannedVLM(faulty=False)
    recipe = tmp_path / "recipe.toml"
    with canned_vlm.serve(vlm) as url:
        recipe.write_text(
            f"""
            output = "{tmp_path}/out"
            side = 64
            sources = [{{kind = "rgba", path = "{tmp_path}/drawn"}}]
            vlm = {{url = "{url}", model = "canned", price_in = 1.0}}
            edit = {{kind = "completion", steps = 1}}
            remove = {{kind = "removal", steps = 1}}
            filters = {{min_side = 64, min_sharpness = 0.0}}
            """
        )

        def run(*more: str, code: int = 0) -> str:
            result = CliRunner().invoke(app, ["curate", str(recipe), *more])
            assert result.exit_code == code, result.output
            return result.stdout

        assert "unknown: a run with limit=20 measures every stage" in run("--dry-run")
        assert not (tmp_path / "out").exists()
        report: dict[str, Any] = json.loads(run("limit=2", "--json"))
        assert report["counts"] and sum(report["counts"].values()) == 2 and report["failed"] == []
        stages = {part["stage"]: part for part in json.loads(run("--dry-run", "--json"))["stages"]}
        assert (stages["edit"]["known"], stages["edit"]["todo"]) == (2, 1) and stages["scene"]["cost"] > 0
        assert "review shows them for a decision" in run()
        assert len((tmp_path / "out" / "manifest.jsonl").read_text().splitlines()) == 3
        wrong = CliRunner().invoke(app, ["curate", str(recipe), "edit.kind=paint"])
        assert wrong.exit_code == 2 and "edit.kind='paint' is not known" in wrong.output


def test_the_recipe_of_alphalayers_is_one() -> None:
    made = config.build(CurationRecipe, config.load(RECIPES / "alphalayers.toml"))
    made.check()
    assert len(made.sources) == 11 and made.select.keep == 1000 and made.select.test == 100
