"""From the rows of the suite to tables: one or more a category, what is required of the model, and the README's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import ge, gt, le, lt
from typing import NamedTuple

from omnialpha.evaluation.methods.baselines import OWN_FINDER
from omnialpha.evaluation.methods.constants import BEST_CONSTANT
from omnialpha.evaluation.metrics.backgrounds import BACKGROUNDS
from omnialpha.evaluation.reports.report import Column, Row, Table
from omnialpha.evaluation.scoring import CONN, GRAD, MAD, MSE, SAD
from omnialpha.evaluation.suite.figures import summarise
from omnialpha.evaluation.suite.matting import ANCHORED, TWO, WORDINGS
from omnialpha.tasks import MAPS, Role

METHOD, GUIDANCE, TASK = Column("method", "method"), Column("guidance", "guidance"), Column("task", "task")
WHOLE = (SAD, MAD, MSE, GRAD, CONN)
COMPOSITES = Column("composites", "composites, PSNR (dB)", 2, "higher")
BAND = tuple(Column(f"{c.key}_unknown", f"{c.title}, unknown", c.digits, c.better) for c in (SAD, MAD, MSE))
OPAQUE = Column("opacity", "opaque (%)", 1)


class SuiteResults:
    """Rows by part and method, in the order in which they were made. model: its name."""

    def __init__(self, rows: Iterable[Row], model: str) -> None:
        self.default, self.raw, self.model = f"{model}, default", f"{model}, raw", model
        self.rows: dict[str, dict[str, list[Row]]] = {}
        for row in rows:
            self.rows.setdefault(row["part"], {}).setdefault(row["method"], []).append(row)

    def of(self, *parts: str, keep: Callable[[Row], bool] = lambda row: True) -> list[Row]:
        """A summary of each method in these parts, over the pictures to keep."""
        groups = (rows for part in parts for rows in self.rows.get(part, {}).values())
        kept = ([row for row in rows if keep(row)] for rows in groups)
        return [summarise(rows) for rows in kept if rows]

    def one(self, part: str, method: str) -> Row | None:
        rows = self.rows.get(part, {}).get(method)
        return summarise(rows) if rows else None

    def number(self, part: str, method: str, figure: str) -> float | None:
        return (self.one(part, method) or {}).get(figure)


# ---- tables of a category -------------------------------------------------------------------------------------------


def autoencoder(results: SuiteResults) -> list[Table]:
    figures = [Column(name, name, 2, "higher") for name in (*BACKGROUNDS, "mean")]
    columns = [Column("guidance", "picture"), *figures, Column("alpha_mad", "alpha MAD", 4, "lower")]
    rows = results.of(*(f"autoencoder: {name}" for name in ("subject", "background", "composite")))
    return [Table("AlphaVAE: PSNR in dB over nine backgrounds, and alpha MAD", columns, rows)]


def matting(results: SuiteResults) -> list[Table]:
    given_more = [row for row in results.of("matting_trimap") if row["method"] not in (results.default, results.raw)]
    rows = _last_constant(results.of("matting_auto"), given_more)
    tables = [Table("Matting, automatic", (METHOD, GUIDANCE, *WHOLE, COMPOSITES), rows)]
    for role, what in zip(MAPS, ("an alpha map", "a trimap", "a precise mask", "a rough mask"), strict=True):
        title, columns = f"Matting with {what}", (METHOD, *WHOLE, *BAND, COMPOSITES)
        tables.append(Table(title, columns, results.of(f"matting_{role}")))
        if role is Role.TRIMAP and (rows := results.of("matting_trimap", keep=_anchored)):
            title += ", only where classical matting has something to start from"
            tables.append(Table(title, columns, [*rows, *results.of(ANCHORED)]))
    named = [row | {"guidance": "text"} for row in results.of("matting_text: as composed")]
    rows = _last_constant(named, results.of(f"matting_auto: {TWO}", f"matting_trimap: {TWO}"))
    columns = (METHOD, GUIDANCE, Column("right", "right one of two (%)", 1, "higher"), *WHOLE, COMPOSITES)
    return [*tables, Table("Matting by text, as composed, two objects", columns, rows), _wordings(results)]


def _anchored(row: Row) -> bool:
    return bool(row.get("anchored")) and row["method"] != BEST_CONSTANT


def _last_constant(rows: Sequence[Row], more: Sequence[Row]) -> list[Row]:
    """Rows of those that are given more come behind, unless that changed nothing; the best constant, which knows the
    truth, comes last.
    """
    made: dict[tuple[str, float], Row] = {}
    for row in (row for row in (*rows, *more) if row["method"] != BEST_CONSTANT):
        made.setdefault((row["method"], row["mad"]), row)
    return [*made.values(), *(row | {"guidance": "truth"} for row in rows if row["method"] == BEST_CONSTANT)]


def _wordings(results: SuiteResults) -> Table:
    rows = []
    for wording in WORDINGS:
        if default := results.one(f"matting_text: {wording}", results.default):
            raw = results.number(default["part"], results.raw, "right")
            rows.append(default | {"wording": wording, "default": default["right"], "raw": raw, "chance": 50.0})
    shares = {"default": results.default, "raw": results.raw, "chance": "chance"}
    columns = [Column("wording", "wording"), GUIDANCE, Column("n", "n", 0)]
    columns += [Column(key, title, 1) for key, title in shares.items()]
    return Table("Text chooses one of two objects: scenes with the right one, %", columns, rows)


def removal(results: SuiteResults) -> list[Table]:
    figures = {"hole_pooled": "hole, pooled", "hole": "hole, mean", "whole": "whole, mean"}
    columns = [Column("guidance", "map"), METHOD, Column("hole_share", "hole (%)", 1)]
    columns += [Column(key, title, 2, "higher") for key, title in figures.items()]
    rows = results.of(*(f"removal_{role}" for role in (Role.ROUGH, Role.TRIMAP, Role.PRECISE, Role.ALPHA, "auto")))
    return [Table("Removal: PSNR in dB against the true background", columns, rows)]


def decomposition(results: SuiteResults) -> list[Table]:
    columns = (
        GUIDANCE,
        METHOD,
        Column("background_l1", "background RGB L1", 4, "lower"),
        Column("foreground_l1", "foreground RGB L1", 4, "lower"),
        Column("alpha_mad", "foreground alpha MAD", 4, "lower"),
        Column("recomposed_pooled", "recomposition, pooled (dB)", 2, "higher"),
        Column("recomposed", "recomposition, mean (dB)", 2, "higher"),
    )
    rows = results.of(*(f"decompose_{role}" for role in ("auto", *MAPS)))
    # nothing has no colour
    rows = [row if row["foreground_seen"] else row | {"foreground_l1": None} for row in rows]
    return [Table("Decomposition into background and foreground", columns, rows)]


def completion(results: SuiteResults) -> list[Table]:
    pooled = Column("kept_pooled", "given layer kept, pooled (dB)", 2, "higher")
    kept = (pooled, Column("kept", "mean (dB)", 2, "higher"), Column("changed", "changed (%)", 1))
    away = (Column("away", "away from the given layer, L1", 4), Column("shown", "a layer is there (%)", 1))
    return [
        Table(
            "Completion of a whole picture: the given layer is kept",
            (TASK, METHOD, *kept, OPAQUE),
            results.of("foreground_to_full", "background_to_full"),
        ),
        Table(
            "Completion by a new layer",
            (TASK, METHOD, *away, OPAQUE),
            results.of("foreground_to_background", "background_to_foreground"),
        ),
    ]


def generation(results: SuiteResults) -> list[Table]:
    columns = [Column("method", "pictures"), *(Column(key, key, 1, "higher") for key in ("colour", "shape", "both"))]
    title = "Text to picture: the prompt read back from the picture, % right"
    return [Table(title, columns, results.of("text_to_image"))]


TABLES: dict[str, Callable[[SuiteResults], list[Table]]] = {
    "autoencoder": autoencoder,
    "matting": matting,
    "removal": removal,
    "decomposition": decomposition,
    "completion": completion,
    "generation": generation,
}


# ---- what is required -----------------------------------------------------------------------------------------------


class Requirement(NamedTuple):
    """What a figure of the model in one part has to be, by the default output and by the raw one: a number, or that of
    another method. above: a method whose figure is taken off first.
    """

    what: str
    part: str
    figure: str
    relation: str  # of PASSES
    bound: float | str
    above: str = ""


TEXT, PASSES = "matting_text: as composed", {"<=": le, "<": lt, ">=": ge, ">": gt}
HOLE = "removal, rough map, PSNR in the hole above Telea's"
REQUIRED = (
    Requirement("automatic matting, MAD", "matting_auto", "mad", "<=", 0.05),
    Requirement("matting with a trimap, MAD", "matting_trimap", "mad", "<", "closed form"),
    Requirement("text picks the right one of two, as composed, %", TEXT, "right", ">=", 80),
    Requirement(f"{HOLE}, pooled, dB", "removal_rough", "hole_pooled", ">", 0, "Telea"),
    Requirement(f"{HOLE}, mean, dB", "removal_rough", "hole", ">", 0, "Telea"),
    Requirement("recomposition PSNR, pooled, dB", "decompose_auto", "recomposed_pooled", ">=", 22),
    Requirement("recomposition PSNR, mean, dB", "decompose_auto", "recomposed", ">=", 22),
)


def verdict(results: SuiteResults) -> Table:
    """Of the categories that were run."""
    rows = []
    for what, part, figure, relation, bound, above in REQUIRED:
        wanted = results.number(part, bound, figure) if isinstance(bound, str) else bound
        less = results.number(part, above, figure) if above else 0.0
        default, raw = (results.number(part, name, figure) for name in (results.default, results.raw))
        if wanted is None or less is None or default is None or raw is None:
            continue
        said = f"{wanted:.4f} ({bound}'s)" if isinstance(bound, str) else str(bound)
        met = all(PASSES[relation](value - less, wanted) for value in (default, raw))
        row = {"what": what, "bound": f"{relation} {said}", "default": default - less, "raw": raw - less}
        rows.append(row | {"met": "yes" if met else "NO"})
    columns = [Column("what", "figure"), Column("bound", "required"), Column("default", "default", 4)]
    return Table("Required / measured / met", [*columns, Column("raw", "raw", 4), Column("met", "met")], rows)


# ---- the README's ---------------------------------------------------------------------------------------------------


class ReadmeRow(NamedTuple):
    """A row of the README: a figure of the model's default output in one part, then those of other methods, or known
    values, each with its word; "raw" is the model's own. form: of a number.
    """

    what: str
    required: str
    part: str
    figure: str
    form: str
    others: tuple[tuple[str | float, str], ...] = ()


DB, PERCENT, SHARE = "{:.2f} dB", "{:.1f} %", "{:.3f}"
MASKED = (("GrabCut", "GrabCut"), ("the map itself", "the mask itself"))
DRAWN = (("chance", "chance"), ("true drawings", "true drawings"))
LINES = (
    ReadmeRow("automatic matting, MAD", "at most .05", "matting_auto", "mad", SHARE,
         ((BEST_CONSTANT, "constant"), (OWN_FINDER, OWN_FINDER), ("GrabCut", "GrabCut with a rectangle"))),
    ReadmeRow("matting with a trimap, MAD", "below closed form's", "matting_trimap", "mad", SHARE,
         (("GrabCut", "GrabCut"), ("closed form", "closed form"), ("KNN matting", "KNN"), ("large kernels", "lkm"))),
    ReadmeRow("matting with a precise mask, MAD", "", "matting_precise", "mad", SHARE, MASKED),
    ReadmeRow("matting with a rough mask, MAD", "", "matting_rough", "mad", SHARE, MASKED),
    ReadmeRow("text picks the right one of two objects", "80 %", TEXT, "right", PERCENT, ((50.0, "chance"),)),
    ReadmeRow("removal, rough mask, PSNR in the hole, pooled", "above Telea's", "removal_rough", "hole_pooled", DB,
         (("Telea", "Telea"), ("Navier-Stokes", "Navier-Stokes"))),
    ReadmeRow("decomposition, alpha MAD of the foreground", "", "decompose_auto", "alpha_mad", SHARE,
         (("GrabCut, Telea", "GrabCut and Telea"),)),
    ReadmeRow("recomposition after decomposition, PSNR, pooled", "22 dB", "decompose_auto", "recomposed_pooled", DB,
         (("raw", "without `fidelity`"),)),
    ReadmeRow("completion keeps the given foreground, PSNR, pooled", "", "foreground_to_full", "kept_pooled", DB),
    ReadmeRow("completion keeps the given background, PSNR, pooled", "", "background_to_full", "kept_pooled", DB),
    ReadmeRow("text to picture, colour read back", "", "text_to_image", "colour", PERCENT, DRAWN),
    ReadmeRow("text to picture, shape read back", "", "text_to_image", "shape", PERCENT, DRAWN),
    ReadmeRow("autoencoder, composites, PSNR, mean of nine backgrounds", "", "autoencoder: composite", "mean", DB),
)  # fmt: skip


def readme(results: SuiteResults) -> Table:
    """One row a figure, the model's and then others' in words."""
    rows = []
    for what, required, part, figure, form, others in LINES:
        value = results.number(part, results.model if part.startswith("autoencoder") else results.default, figure)
        if value is None:
            continue
        known = []
        for method, word in others:
            name = results.raw if method == "raw" else method
            other = results.number(part, name, figure) if isinstance(name, str) else name
            known += [f"{word} {_say(form, other)}"] if other is not None else []
        said = _say(form, value) + (f" ({', '.join(known)})" if known else "")
        rows.append({"what": what, "required": required, "value": said})
    columns = (Column("what", "figure"), Column("required", "required"), Column("value", results.model))
    return Table("In short", columns, rows)


def _say(form: str, value: float) -> str:
    """`.084`: a share has no nought before the point."""
    said = form.format(value)
    return said[1:] if form == SHARE and said.startswith("0.") else said
