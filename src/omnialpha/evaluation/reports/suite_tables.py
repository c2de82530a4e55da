"""From the rows of the suite to tables: one or more a category, what is required of the model, and the README's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from omnialpha.evaluation.methods.baselines import OWN_FINDER
from omnialpha.evaluation.methods.constants import BEST_CONSTANT
from omnialpha.evaluation.metrics.backgrounds import BACKGROUNDS
from omnialpha.evaluation.reports.report import Column, Row, Table
from omnialpha.evaluation.suite_figures import summarise
from omnialpha.evaluation.suite_matting import ANCHORED, TWO, WORDINGS
from omnialpha.tasks import MAPS, Role

AUTOMATIC = 0.05  # MAD of automatic mattes: what is required
GUIDES = (Role.ROUGH, Role.TRIMAP, Role.PRECISE, Role.ALPHA)
METHOD, GUIDANCE = Column("method", "method"), Column("guidance", "guidance")
WHOLE = (
    Column("sad", "SAD", 3, "lower"),
    Column("mad", "MAD", 4, "lower"),
    Column("mse", "MSE", 4, "lower"),
    Column("grad", "GRAD", 3, "lower"),
    Column("conn", "CONN", 3, "lower"),
)
COMPOSITES = Column("composites", "composites, PSNR (dB)", 2, "higher")
BAND = tuple(
    Column(f"{m}_unknown", f"{m.upper()}, unknown", d, "lower") for m, d in (("sad", 3), ("mad", 4), ("mse", 4))
)


class SuiteResults:
    """Rows by part and method, in the order in which they were made. model: its name."""

    def __init__(self, rows: Iterable[Row], model: str) -> None:
        self.default, self.raw, self.model = f"{model}, default", f"{model}, raw", model
        self.rows: dict[str, dict[str, list[Row]]] = {}
        for row in rows:
            self.rows.setdefault(row["part"], {}).setdefault(row["method"], []).append(row)

    def of(self, part: str, keep: Callable[[Row], bool] = lambda row: True) -> list[Row]:
        """A summary of each method in a part, over the pictures to keep."""
        kept = ([row for row in rows if keep(row)] for rows in self.rows.get(part, {}).values())
        return [summarise(rows) for rows in kept if rows]

    def one(self, part: str, method: str) -> Row | None:
        rows = self.rows.get(part, {}).get(method)
        return summarise(rows) if rows else None

    def number(self, part: str, method: str, figure: str) -> float | None:
        row = self.one(part, method)
        return None if row is None else row.get(figure)

    def ours(self, row: Row) -> bool:
        return row["method"] in (self.default, self.raw)


# ---- tables of a category -------------------------------------------------------------------------------------------


def autoencoder(results: SuiteResults) -> list[Table]:
    columns = [Column(name, name, 2, "higher") for name in (*BACKGROUNDS, "mean")]
    columns = [Column("guidance", "picture"), *columns, Column("alpha_mad", "alpha MAD", 4, "lower")]
    rows = [row for name in ("subject", "background", "composite") for row in results.of(f"autoencoder: {name}")]
    return [Table("AlphaVAE: PSNR in dB over nine backgrounds, and alpha MAD", columns, rows)]


def matting(results: SuiteResults) -> list[Table]:
    given_more = [row for row in results.of("matting_trimap") if not results.ours(row)]
    columns = (METHOD, GUIDANCE, *WHOLE, COMPOSITES)
    tables = [Table("Matting, automatic", columns, _last_constant(results.of("matting_auto"), given_more))]
    for role, what in zip(MAPS, ("an alpha map", "a trimap", "a precise mask", "a rough mask"), strict=True):
        title = f"Matting with {what}"
        tables.append(Table(title, (METHOD, *WHOLE, *BAND, COMPOSITES), results.of(f"matting_{role}")))
        if role is Role.TRIMAP and (rows := results.of("matting_trimap", _anchored)):
            title += ", only where classical matting has something to start from"
            tables.append(Table(title, (METHOD, *WHOLE, *BAND, COMPOSITES), [*rows, *results.of(ANCHORED)]))
    named = [row | {"guidance": "text"} for row in results.of("matting_text: as composed")]
    more = [row for task in ("matting_auto", "matting_trimap") for row in results.of(f"{task}: {TWO}")]
    share = Column("right", "right one of two (%)", 1, "higher")
    tables.append(
        Table(
            "Matting by text, as composed, two objects",
            (METHOD, GUIDANCE, share, *WHOLE, COMPOSITES),
            _last_constant(named, more),
        )
    )
    return [*tables, _wordings(results)]


def _anchored(row: Row) -> bool:
    return bool(row.get("anchored")) and row["method"] != BEST_CONSTANT


def _last_constant(rows: Sequence[Row], more: Sequence[Row]) -> list[Row]:
    """Rows of those that are given more come behind, unless that changed nothing; the best constant, which knows the
    truth, comes last.
    """
    last = [row | {"guidance": "truth"} for row in rows if row["method"] == BEST_CONSTANT]
    made: dict[tuple[str, float], Row] = {}
    for row in chain(rows, more):
        if row["method"] != BEST_CONSTANT:
            made.setdefault((row["method"], row["mad"]), row)
    return [*made.values(), *last]


def _wordings(results: SuiteResults) -> Table:
    rows = []
    for wording in WORDINGS:
        default = results.one(f"matting_text: {wording}", results.default)
        if default:
            raw = results.number(default["part"], results.raw, "right")
            rows.append({**default, "wording": wording, "default": default["right"], "raw": raw, "chance": 50.0})
    columns = [Column("wording", "wording"), GUIDANCE, Column("n", "n", 0)]
    columns += [
        Column(key, title, 1)
        for key, title in (("default", results.default), ("raw", results.raw), ("chance", "chance"))
    ]
    return Table("Text chooses one of two objects: scenes with the right one, %", columns, rows)


def removal(results: SuiteResults) -> list[Table]:
    columns = [Column("guidance", "map"), METHOD, Column("hole_share", "hole (%)", 1)]
    for key, title in (("hole_pooled", "hole, pooled"), ("hole", "hole, mean"), ("whole", "whole, mean")):
        columns.append(Column(key, title, 2, "higher"))
    rows = [row for role in (*GUIDES, "auto") for row in results.of(f"removal_{role}")]
    return [Table("Removal: PSNR in dB against the true background", columns, rows)]


def decomposition(results: SuiteResults) -> list[Table]:
    columns = [GUIDANCE, METHOD]
    columns += [Column(f"{name}_l1", f"{name} RGB L1", 4, "lower") for name in ("background", "foreground")]
    columns += [Column("alpha_mad", "foreground alpha MAD", 4, "lower")]
    columns += [Column("recomposed_pooled", "recomposition, pooled (dB)", 2, "higher")]
    columns += [Column("recomposed", "recomposition, mean (dB)", 2, "higher")]
    rows = [row for role in ("auto", *MAPS) for row in results.of(f"decompose_{role}")]
    # nothing has no colour
    rows = [row if row["foreground_seen"] else {**row, "foreground_l1": None} for row in rows]
    return [Table("Decomposition into background and foreground", columns, rows)]


def completion(results: SuiteResults) -> list[Table]:
    task, opaque = Column("task", "task"), Column("opacity", "opaque (%)", 1)
    keeps = [task, METHOD, Column("kept_pooled", "given layer kept, pooled (dB)", 2, "higher")]
    keeps += [Column("kept", "mean (dB)", 2, "higher"), Column("changed", "changed (%)", 1), opaque]
    news = [
        task,
        METHOD,
        Column("away", "away from the given layer, L1", 4),
        Column("shown", "a layer is there (%)", 1),
        opaque,
    ]
    return [
        Table(
            "Completion of a whole picture: the given layer is kept",
            keeps,
            _parts(results, "foreground_to_full", "background_to_full"),
        ),
        Table(
            "Completion by a new layer", news, _parts(results, "foreground_to_background", "background_to_foreground")
        ),
    ]


def _parts(results: SuiteResults, *names: str) -> list[Row]:
    return [row for name in names for row in results.of(name)]


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


@dataclass(frozen=True)
class Requirement:
    """A figure that this model has to reach, by the default output and by the raw one."""

    what: str
    bound: str
    passes: Callable[[float], bool]
    default: float
    raw: float

    @property
    def met(self) -> bool:
        return self.passes(self.default) and self.passes(self.raw)


def required(results: SuiteResults) -> list[Requirement]:
    """Of the categories that were run."""
    made = []
    made += _of(results, "automatic matting, MAD", "matting_auto", "mad", f"<= {AUTOMATIC}", lambda v: v <= AUTOMATIC)
    closed = results.number("matting_trimap", "closed form", "mad")
    if closed is not None:
        bound = f"< {closed:.4f} (closed form's)"
        made += _of(results, "matting with a trimap, MAD", "matting_trimap", "mad", bound, lambda v: v < closed)
    part = "matting_text: as composed"
    made += _of(results, "text picks the right one of two, as composed, %", part, "right", ">= 80", lambda v: v >= 80)
    for figure, how in (("hole_pooled", "pooled"), ("hole", "mean")):
        telea = results.number("removal_rough", "Telea", figure)
        if telea is not None:
            what = f"removal, rough map, PSNR in the hole above Telea's, {how}, dB"
            made += _of(results, what, "removal_rough", figure, "> 0", lambda v: v > 0, telea)
    for figure, how in (("recomposed_pooled", "pooled"), ("recomposed", "mean")):
        made += _of(results, f"recomposition PSNR, {how}, dB", "decompose_auto", figure, ">= 22", lambda v: v >= 22)
    return made


def _of(
    results: SuiteResults,
    what: str,
    part: str,
    figure: str,
    bound: str,
    passes: Callable[[float], bool],
    less: float = 0.0,
) -> list[Requirement]:
    default, raw = (results.number(part, name, figure) for name in (results.default, results.raw))
    return [] if default is None or raw is None else [Requirement(what, bound, passes, default - less, raw - less)]


def verdict(results: SuiteResults) -> Table:
    rows = [
        {"what": r.what, "bound": r.bound, "default": r.default, "raw": r.raw, "met": "yes" if r.met else "NO"}
        for r in required(results)
    ]
    columns = [Column("what", "figure"), Column("bound", "required"), Column("default", "default", 4)]
    return Table("Required / measured / met", [*columns, Column("raw", "raw", 4), Column("met", "met")], rows)


# ---- the README's ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReadmeRow:
    """A row of the README: a figure of the model's default output in one part, and beside it those of other methods, or
    known values, each with its word; "raw" is the model's own. form: of a number.
    """

    what: str
    required: str
    part: str
    figure: str
    form: str
    others: tuple[tuple[str | float, str], ...] = ()


DB, PERCENT, SHARE = "{:.2f} dB", "{:.1f} %", "{:.3f}"
LINES = (
    ReadmeRow("automatic matting, MAD", "at most .05", "matting_auto", "mad", SHARE,
         ((BEST_CONSTANT, "constant"), (OWN_FINDER, OWN_FINDER), ("GrabCut", "GrabCut with a rectangle"))),
    ReadmeRow("matting with a trimap, MAD", "below closed form's", "matting_trimap", "mad", SHARE,
         (("GrabCut", "GrabCut"), ("closed form", "closed form"), ("KNN matting", "KNN"), ("large kernels", "lkm"))),
    ReadmeRow("matting with a precise mask, MAD", "", "matting_precise", "mad", SHARE,
         (("GrabCut", "GrabCut"), ("the map itself", "the mask itself"))),
    ReadmeRow("matting with a rough mask, MAD", "", "matting_rough", "mad", SHARE,
         (("GrabCut", "GrabCut"), ("the map itself", "the mask itself"))),
    ReadmeRow("text picks the right one of two objects", "80 %", "matting_text: as composed", "right", PERCENT,
         ((50.0, "chance"),)),
    ReadmeRow("removal, rough mask, PSNR in the hole, pooled", "above Telea's", "removal_rough", "hole_pooled", DB,
         (("Telea", "Telea"), ("Navier-Stokes", "Navier-Stokes"))),
    ReadmeRow("decomposition, alpha MAD of the foreground", "", "decompose_auto", "alpha_mad", SHARE,
         (("GrabCut, Telea", "GrabCut and Telea"),)),
    ReadmeRow("recomposition after decomposition, PSNR, pooled", "22 dB", "decompose_auto", "recomposed_pooled", DB,
         (("raw", "without `fidelity`"),)),
    ReadmeRow("completion keeps the given foreground, PSNR, pooled", "", "foreground_to_full", "kept_pooled", DB),
    ReadmeRow("completion keeps the given background, PSNR, pooled", "", "background_to_full", "kept_pooled", DB),
    ReadmeRow("text to picture, colour read back", "", "text_to_image", "colour", PERCENT,
         (("chance", "chance"), ("true drawings", "true drawings"))),
    ReadmeRow("text to picture, shape read back", "", "text_to_image", "shape", PERCENT,
         (("chance", "chance"), ("true drawings", "true drawings"))),
    ReadmeRow("autoencoder, composites, PSNR, mean of nine backgrounds", "", "autoencoder: composite", "mean", DB),
)  # fmt: skip


def readme(results: SuiteResults) -> Table:
    """One row a figure, the model's beside others' in words."""
    rows = []
    for line in LINES:
        ours = results.model if line.part.startswith("autoencoder") else results.default
        value = results.number(line.part, ours, line.figure)
        if value is None:
            continue
        beside = []
        for method, word in line.others:
            own = results.raw if method == "raw" else method
            figure = results.number(line.part, own, line.figure) if isinstance(own, str) else own
            beside += [f"{word} {_say(line.form, figure)}"] if figure is not None else []
        others = f" ({', '.join(beside)})" if beside else ""
        rows.append({"what": line.what, "required": line.required, "value": _say(line.form, value) + others})
    columns = (Column("what", "figure"), Column("required", "required"), Column("value", results.model))
    return Table("In short", columns, rows)


def _say(form: str, value: float) -> str:
    """`.084`: a share has no nought before the point."""
    said = form.format(value)
    return said[1:] if form == SHARE and said.startswith("0.") else said
