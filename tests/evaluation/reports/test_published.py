"""What is said of published figures follows from them."""

from collections.abc import Mapping

import pytest

from omnialpha.evaluation.reports.published import TABLES, Printed, Published, comparable

Rows = Mapping[str, Mapping[str, Printed]]


def table(title: str) -> Published:
    return next(one for one in TABLES if one.title == title)


def about(one: Published, words: str) -> tuple[str, ...]:
    """The rows of the note with these words."""
    return next(note.methods for note in one.notes if words in note.text)


AIM, TEST = table("Automatic matting, AIM-500"), table("Automatic matting, AlphaLayersTest")
REFERRED = table("Referring matting, RefMatte-RW100")


def test_numbers_keep_their_digits() -> None:
    row = AIM.rows["SmartMatting"]
    assert (row["sad"], f"{row['sad']:.3f}") == (34.3, "34.30")
    assert f"{AIM.rows['OmniAlpha']['conn']:.3f}" == "7.8820"


def test_tables_are_whole() -> None:
    places = {one.place for one in TABLES if one.source.endswith("2511.20211v1")}
    assert places == {f"table {k}" for k in (2, 3, 4, 5, 6)}
    for one in TABLES:
        keys = [column.key for column in one.columns]
        assert all(list(row) == keys for row in one.rows.values()), one.title
        assert all(set(note.methods) <= one.rows.keys() for note in one.notes), one.title
        assert all((one.n, one.resolution, one.region, one.scale))


def test_shares_add_up() -> None:
    completion = next(one for one in TABLES if one.benchmark == "judge")
    assert all(sum(row.values()) == 100 for row in completion.rows.values())


def test_mse_above_mad_is_noted_where_it_is() -> None:
    for one in TABLES:
        above = tuple(name for name, row in one.rows.items() if "mad" in row and row["mse"] > row["mad"])
        assert above == (about(one, "MSE is above MAD") if above else ()), one.title
    assert about(AIM, "MSE is above MAD") == ("OmniAlpha",)


def test_the_reduction_of_the_abstract() -> None:
    ours, others = AIM.rows["OmniAlpha"]["sad"], (AIM.rows["AIM"]["sad"], AIM.rows["SmartMatting"]["sad"])
    assert [round(100 * (1 - ours / other), 1) for other in others] == [83.8, 77.3]


def test_what_looks_swapped() -> None:
    for one in (AIM, TEST):
        marked = about(one, "look swapped")
        for name, row in one.rows.items():
            conn, grad = row["conn"] / row["sad"], row["grad"] / row["sad"]
            assert (conn < 0.5 and 0.85 < grad < 1) if name in marked else (0.99 < conn < 1.02 and grad > 1.3)


def test_pictures_that_the_figures_are_of() -> None:
    """Sums over means: megapixels a picture."""

    def size(row: Mapping[str, Printed], mean: str) -> float:
        return round(row["sad"] / row[mean] / 1000, 2)

    assert [size(row, "mad") for row in AIM.rows.values()] == [1.69] * 3
    assert [size(row, "mad") for row in TEST.rows.values()] == [2.57, 1.69, 2.69]
    assert [size(row, "mse") for row in REFERRED.rows.values()] == [0.27, 0.03, 0.28, 0.28]
    assert REFERRED.rows["MatAny"]["sad"] / REFERRED.rows["MatAny"]["mse"] / 1000 == pytest.approx(0.028, abs=0.0005)
    assert table("Referring matting, AlphaLayersTest").rows["MatAny"]["mse"] == 0.0717
    assert all(row["mse"] / 0.001 > 1 for one in (AIM, TEST, REFERRED) for row in one.rows.values())


def test_generation() -> None:
    one = table("Text to RGBA, AIM-500")
    made = {name: row["fid"] for name, row in one.rows.items() if row["fid"] > 0}
    assert (min(made, key=lambda name: made[name]),) == about(one, "the best FID")
    for each in (one, table("Text to RGBA, AlphaLayersTest")):
        true = each.rows["true pictures"]["clip_score"]
        assert tuple(n for n, row in each.rows.items() if row["clip_score"] > true) == about(each, "own CLIP score")
    assert [round(x, 2) for x in (160.2664, 155.6606)] == [one.rows[n]["fid"] for n in about(one, "160.2664")]


def test_removal() -> None:
    rows = table("Removal, RORD").rows
    assert rows["OmniAlpha (decomposition)"]["psnr"] < rows["LayerDecomp"]["psnr"]
    assert rows["OmniAlpha (removal)"]["fid"] > rows["LayerDecomp"]["fid"]


def test_what_a_run_compares_with() -> None:
    assert [one.title for one in comparable("aim-500", "matting_auto")] == ["Automatic matting, AIM-500"]
    assert [one.title for one in comparable("aim-500", "matting_trimap")] == []
    assert [one.title for one in comparable("alphalayers", "matting_text")] == ["Referring matting, AlphaLayersTest"]
    assert [one.title for one in comparable("rord", "decompose_rough")] == ["Removal, RORD"]
    assert len(comparable("vae")) == 2
