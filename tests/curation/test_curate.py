"""Curation end to end against local servers: what comes out, what is left out and why, killed and resumed."""

import json
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from omnialpha import config
from omnialpha.curation import engine, review, scoring
from omnialpha.curation.candidate import Candidate, SourceItem
from omnialpha.curation.curate import curate, estimate, items, total
from omnialpha.curation.recipe import CurationRecipe
from omnialpha.curation.store import Store
from omnialpha.curation.tools import Tools
from omnialpha.data.records.check import examine
from omnialpha.data.stream.datasets import DatasetSettings
from omnialpha.data.synthetic import layers
from omnialpha.errors import InputError
from scripts import benchmark

canned_vlm = benchmark("common/canned_vlm")
SIDE, COUNT, KILLS = 64, 24, 20


@pytest.fixture(scope="module")
def foregrounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn layers with a transparent rim; a copy of one of them, a cut one, and a file that is damaged."""
    folder = tmp_path_factory.mktemp("foregrounds")
    pictures, _ = layers.bank(COUNT, SIDE - 16, 5)
    for number, pixels in enumerate(pictures):
        whole = Image.new("RGBA", (SIDE, SIDE))
        whole.paste(Image.fromarray(pixels), (8, 8))
        whole.save(folder / f"{number:02}.png")
    with Image.open(folder / "00.png") as first:
        first.resize((SIDE * 2, SIDE * 2)).save(folder / "copy.png")
        first.crop((SIDE // 2, 0, SIDE, SIDE)).save(folder / "cut.png")
    (folder / "damaged.png").write_bytes((folder / "01.png").read_bytes()[:200])
    return folder


@pytest.fixture
def vlm() -> Iterator[Any]:
    vlm = canned_vlm.CannedVLM()
    with canned_vlm.serve(vlm) as vlm.url:
        yield vlm


def recipe(folder: Path, output: Path, vlm: Any, pictures: Any, **more: Any) -> CurationRecipe:
    server = {"kind": "server", "server": {"url": pictures.url, "model": "painter"}}
    values = {
        "output": str(output),
        "sources": [{"kind": "rgba", "path": str(folder), "name": "drawn", "licence": "Apache-2.0"}],
        "vlm": {"url": vlm.url, "model": "canned", "parallel": 4, "price_in": 1.0, "price_out": 2.0},
        "edit": server,
        "remove": server,
        "filters": {"min_side": 32, "min_sharpness": 0.0},
        "run": {"workers": 4, "shard": 8},
    }
    return config.build(CurationRecipe, values | more)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def files(folder: Path) -> dict[str, bytes]:
    """All that came out, but for the store, and for indices, which know where their shard lies."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and "store" not in path.parts)
    found = (path for path in found if not path.name.endswith(".index.json"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_foregrounds_become_layered_records(foregrounds: Path, tmp_path: Path, vlm: Any, image_server: Any) -> None:
    made = recipe(foregrounds, tmp_path / "out", vlm, image_server)
    seen: Counter[str] = Counter()
    curated = curate(made, lambda stage, event, count: seen.update({f"{stage} {event}": count}))
    out = tmp_path / "out"
    status = dict(curated.status)
    assert len(status) == COUNT + 3 and not curated.failures
    assert (status["drawn/damaged"], status["drawn/cut"], status["drawn/00"]) == ("load", "filter", "duplicate")
    kept = {name for name, state in status.items() if state in ("train", "test")}
    assert len(kept) >= COUNT / 2
    reasons = {row["id"]: row["reason"] for row in lines(out / "rejected.jsonl")}
    assert reasons.keys() == status.keys() - kept and all(reasons.values())
    assert reasons["drawn/00"] == "it looks like drawn/copy."  # which has more pixels
    unusable = [name for name, state in status.items() if state in ("caption", "scene", "instruction", "background")]
    assert unusable and all("no usable answer" in reasons[name] for name in unusable)
    for split in ("train", "test"):
        if (out / f"{split}.jsonl").is_file():
            report = examine(DatasetSettings(str(out / f"{split}.jsonl")), deep=True)
            assert not report.bad and {"matting_auto", "removal_auto", "foreground_to_full"} <= report.tasks.keys()
    manifest = {row["id"]: row for row in lines(out / "manifest.jsonl")}
    assert manifest.keys() == status.keys()
    assert manifest["drawn/00"]["licence"] == "Apache-2.0"
    assert seen["load made"] == COUNT + 2 and seen["load rejected"] == 1 and seen["score made"] == len(kept)
    # a second run asks nothing and writes the same
    before, asked = files(out), sum(vlm.asked.values())
    curate(made)
    assert sum(vlm.asked.values()) == asked
    assert files(out) == before


def test_scores_say_how_well_layers_recompose(foregrounds: Path, tmp_path: Path, vlm: Any, image_server: Any) -> None:
    made = recipe(foregrounds, tmp_path / "out", vlm, image_server, limit=8)
    curate(made)
    rows = [row for row in lines(tmp_path / "out" / "manifest.jsonl") if row["split"]]
    store = Store(tmp_path / "out" / "store")
    for row in rows:
        back, whole = (store.get(row[name]) for name in ("background", "composite"))
        expected = scoring.scores(store.get(row["foregrounds"][0]), back, whole)
        assert row["scores"] == pytest.approx(expected)
    assert len(rows) >= 5


def test_the_best_are_kept_and_reviewers_decide(foregrounds: Path, tmp_path: Path, vlm: Any, image_server: Any) -> None:
    made = recipe(foregrounds, tmp_path / "out", vlm, image_server, select={"keep": 6, "test": 2.0})
    first = dict(curate(made).status)
    kept = [name for name, state in first.items() if state in ("train", "test")]
    assert Counter(first.values())["train"] == 4 and Counter(first.values())["test"] == 2
    left = next(name for name, state in first.items() if state == "select")
    page = (tmp_path / "out" / "review" / "index.html").read_text(encoding="utf-8")
    assert kept[0] in page and left in page
    decisions = {kept[0]: "reject", left: "accept"}
    rows = [row for row in lines(tmp_path / "out" / "manifest.jsonl") if row["id"] in decisions]
    candidates = [Candidate.parse({name: row[name] for name in Candidate.__dataclass_fields__}) for row in rows]
    marks = {candidate.id: review.mark(candidate) for candidate in candidates}
    written = {"format": review.FORMAT, "version": review.VERSION, "decisions": decisions, "marks": marks}
    (tmp_path / "out" / "decisions.json").write_text(json.dumps(written))
    second = curate(made).status
    assert second[kept[0]] == "select" and second[left] in ("train", "test")
    reasons = {row["id"]: row["reason"] for row in lines(tmp_path / "out" / "rejected.jsonl")}
    assert reasons[kept[0]] == "a reviewer rejected it."
    third = curate(replace(made, select=replace(made.select, keep=1))).status
    assert third[left] in ("train", "test") and Counter(third.values())["select"] == len(first) - 1 - sum(
        state not in ("train", "test", "select") for state in first.values()
    )


def test_an_estimate_needs_nothing_and_says_what_is_left(
    foregrounds: Path, tmp_path: Path, vlm: Any, image_server: Any
) -> None:
    made = recipe(foregrounds, tmp_path / "out", vlm, image_server)
    before = {part.stage: part for part in estimate(made)}
    assert before["load"].todo == before["edit"].todo == COUNT + 3 and before["edit"].seconds is None
    assert not vlm.asked and not (tmp_path / "out").exists()
    curate(replace(made, limit=8))
    after = {part.stage: part for part in estimate(made)}
    assert after["load"].known >= 7 and after["load"].known + after["load"].todo == COUNT + 3
    assert after["scene"].seconds and after["scene"].cost and after["edit"].cost == 0
    seconds, cost = total(after.values())
    assert seconds and cost > 0


def test_servers_that_fail_are_tried_again_by_the_next_run(
    foregrounds: Path, tmp_path: Path, vlm: Any, image_server: Any
) -> None:
    made = recipe(foregrounds, tmp_path / "out", vlm, image_server, limit=8)
    image_server.status = 503
    edit = replace(made.edit, server=replace(made.edit.server, tries=1))
    made = replace(made, edit=edit)
    failed = curate(made)
    assert failed.failures and all(one.stage == "edit" and "503" in one.reason for one in failed.failures)
    with pytest.raises(InputError, match=r"candidates failed, the last at edit: status 503"):
        curate(replace(made, run=replace(made.run, failures=0)))
    image_server.status = 200
    asked = dict(vlm.asked)
    assert not curate(made).failures
    assert [vlm.asked[kind] - asked.get(kind, 0) for kind in ("caption", "scene", "instruction")] == [0, 0, 0]


def test_two_items_of_one_name(foregrounds: Path, tmp_path: Path, vlm: Any, image_server: Any) -> None:
    made = recipe(foregrounds, tmp_path, vlm, image_server)
    with pytest.raises(InputError, match="items have an id twice, such as 'drawn/00'"):
        items(replace(made, sources=made.sources * 2))


def test_a_run_that_is_killed_twenty_times_loses_nothing_and_does_nothing_twice(
    foregrounds: Path, tmp_path: Path, image_server: Any
) -> None:
    """Killed after every few answers, wherever it is then; the last run ends as one that was never disturbed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["omnialpha.curation.curate", "omnialpha.curation.output"])
    vlm = canned_vlm.CannedVLM(pause=0.02)
    with canned_vlm.serve(vlm) as vlm.url:
        made = recipe(foregrounds, tmp_path / "killed", vlm, image_server)
        kills = 0
        while kills < KILLS:
            process = context.Process(target=curate, args=(made,))
            process.start()
            enough = sum(vlm.accepted.values()) + 3
            while process.is_alive() and sum(vlm.accepted.values()) < enough:
                time.sleep(0.002)
            if not process.is_alive():
                assert process.exitcode == 0, process.exitcode
                break
            os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
            process.join()
            kills += 1
        curate(made)
        again = sum(count - 1 for count in vlm.accepted.values())
        answered = len(vlm.accepted)
    assert kills == KILLS, f"it was done after {kills} kills"
    assert again <= KILLS * made.run.workers, again  # no more than what was on its way when it was killed
    undisturbed = canned_vlm.CannedVLM()
    with canned_vlm.serve(undisturbed) as undisturbed.url:
        other = recipe(foregrounds, tmp_path / "other", undisturbed, image_server)
        curate(other)
    assert len(undisturbed.accepted) == answered
    one, two = files(tmp_path / "killed"), files(tmp_path / "other")
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []


class Lethal:
    """A picture whose reading is a mistake of ours, which ends a Ray block."""

    suffix = ".png"

    def read(self) -> bytes:
        raise RuntimeError("it was lost")

    def __str__(self) -> str:
        return "lethal.png"


def test_ray_data_does_the_same_and_tolerates_a_block_that_is_lost(
    foregrounds: Path, tmp_path: Path, vlm: Any, image_server: Any
) -> None:
    """Two actors on a local cluster."""
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    made = recipe(foregrounds, tmp_path / "threads", vlm, image_server)
    expected = curate(made)
    by_ray = replace(made, output=str(tmp_path / "ray"), run=replace(made.run, engine="ray", actors=2))
    try:
        assert curate(by_ray).status == expected.status
        one, two = files(tmp_path / "threads"), files(tmp_path / "ray")
        assert [name for name in one if one[name] != two.get(name)] == []
        asked = sum(vlm.asked.values())
        assert curate(by_ray).status == expected.status  # every shard is marked as done
        assert sum(vlm.asked.values()) == asked
        import sys

        ray.cloudpickle.register_pickle_by_value(sys.modules[Lethal.__module__])
        lost = replace(by_ray, output=str(tmp_path / "lost"))
        jobs = items(lost)
        jobs[9] = SourceItem("drawn/lethal", "drawn", "", (Lethal(),))
        outcomes = list(engine.run(jobs, Tools(lost), lambda stage, event, count: None))
        assert {o.stage for o in outcomes[8:16]} == {"ray"} and all(o.failed for o in outcomes[8:16])
        assert not any(o.failed for o in outcomes[:8] + outcomes[16:]) and len(outcomes) == len(jobs)
    finally:
        ray.shutdown()


def test_the_store_keeps_a_picture_once(tmp_path: Path) -> None:
    import torch

    store, picture = Store(tmp_path), torch.rand(4, 8, 9)
    digest = store.put(picture)
    assert store.put(picture) == digest and len([*(tmp_path / "pictures").rglob("*.png")]) == 1
    assert (store.get(digest) - picture).abs().max() < 0.5 / 255 + 1e-6
    assert store.answer("x", "ab" * 32) is None
    store.keep("x", "ab" * 32, {"fields": {"scene": "ö"}})
    assert store.answer("x", "ab" * 32) == {"fields": {"scene": "ö"}} and len(store.answers("x")) == 1


def test_a_candidate_survives_json() -> None:
    one = Candidate("a", "s", "l", ("f",), ("d",), maps={"alpha": "x"}, scores={"literal": 0.5})
    again = Candidate.parse(json.loads(json.dumps(one.data())))
    assert again == one
    more = one.extended({"scores": {"aesthetic": 6.0}, "captions": ["c"]})
    assert more.scores == {"literal": 0.5, "aesthetic": 6.0} and more.captions == ("c",)
