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


class Found:
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


def autoencoder(found: Found) -> list[Table]:
    columns = [Column(name, name, 2, "higher") for name in (*BACKGROUNDS, "mean")]
    columns = [Column("guidance", "picture"), *columns, Column("alpha_mad", "alpha MAD", 4, "lower")]
    rows = [row for name in ("subject", "background", "composite") for row in found.of(f"autoencoder: {name}")]
    return [Table("AlphaVAE: PSNR in dB over nine backgrounds, and alpha MAD", columns, rows)]


def matting(found: Found) -> list[Table]:
    told_more = [row for row in found.of("matting_trimap") if not found.ours(row)]
    columns = (METHOD, GUIDANCE, *WHOLE, COMPOSITES)
    tables = [Table("Matting, automatic", columns, _last_constant(found.of("matting_auto"), told_more))]
    for role, what in zip(MAPS, ("an alpha map", "a trimap", "a precise mask", "a rough mask"), strict=True):
        title = f"Matting with {what}"
        tables.append(Table(title, (METHOD, *WHOLE, *BAND, COMPOSITES), found.of(f"matting_{role}")))
        if role is Role.TRIMAP and (rows := found.of("matting_trimap", _anchored)):
            title += ", only where classical matting has something to start from"
            tables.append(Table(title, (METHOD, *WHOLE, *BAND, COMPOSITES), [*rows, *found.of(ANCHORED)]))
    named = [row | {"guidance": "text"} for row in found.of("matting_text: as composed")]
    more = [row for task in ("matting_auto", "matting_trimap") for row in found.of(f"{task}: {TWO}")]
    share = Column("right", "right one of two (%)", 1, "higher")
    tables.append(
        Table(
            "Matting by text, as composed, two objects",
            (METHOD, GUIDANCE, share, *WHOLE, COMPOSITES),
            _last_constant(named, more),
        )
    )
    return [*tables, _wordings(found)]


def _anchored(row: Row) -> bool:
    return bool(row.get("anchored")) and row["method"] != BEST_CONSTANT


def _last_constant(rows: Sequence[Row], more: Sequence[Row]) -> list[Row]:
    """Rows of those that are told more come behind, unless that changed nothing; the best constant, which is told the
    truth, comes last.
    """
    last = [row | {"guidance": "truth"} for row in rows if row["method"] == BEST_CONSTANT]
    made: dict[tuple[str, float], Row] = {}
    for row in chain(rows, more):
        if row["method"] != BEST_CONSTANT:
            made.setdefault((row["method"], row["mad"]), row)
    return [*made.values(), *last]


def _wordings(found: Found) -> Table:
    rows = []
    for wording in WORDINGS:
        default = found.one(f"matting_text: {wording}", found.default)
        if default:
            raw = found.number(default["part"], found.raw, "right")
            rows.append({**default, "wording": wording, "default": default["right"], "raw": raw, "chance": 50.0})
    columns = [Column("wording", "wording"), GUIDANCE, Column("n", "n", 0)]
    columns += [
        Column(key, title, 1) for key, title in (("default", found.default), ("raw", found.raw), ("chance", "chance"))
    ]
    return Table("Text chooses one of two objects: scenes with the right one, %", columns, rows)


def removal(found: Found) -> list[Table]:
    columns = [Column("guidance", "map"), METHOD, Column("hole_share", "hole (%)", 1)]
    for key, title in (("hole_pooled", "hole, pooled"), ("hole", "hole, mean"), ("whole", "whole, mean")):
        columns.append(Column(key, title, 2, "higher"))
    rows = [row for role in (*GUIDES, "auto") for row in found.of(f"removal_{role}")]
    return [Table("Removal: PSNR in dB against the true background", columns, rows)]


def decomposition(found: Found) -> list[Table]:
    columns = [GUIDANCE, METHOD]
    columns += [Column(f"{name}_l1", f"{name} RGB L1", 4, "lower") for name in ("background", "foreground")]
    columns += [Column("alpha_mad", "foreground alpha MAD", 4, "lower")]
    columns += [Column("recomposed_pooled", "recomposition, pooled (dB)", 2, "higher")]
    columns += [Column("recomposed", "recomposition, mean (dB)", 2, "higher")]
    rows = [row for role in ("auto", *MAPS) for row in found.of(f"decompose_{role}")]
    # nothing has no colour
    rows = [row if row["foreground_seen"] else {**row, "foreground_l1": None} for row in rows]
    return [Table("Decomposition into background and foreground", columns, rows)]


def completion(found: Found) -> list[Table]:
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
            _parts(found, "foreground_to_full", "background_to_full"),
        ),
        Table("Completion by a new layer", news, _parts(found, "foreground_to_background", "background_to_foreground")),
    ]


def _parts(found: Found, *names: str) -> list[Row]:
    return [row for name in names for row in found.of(name)]


def generation(found: Found) -> list[Table]:
    columns = [Column("method", "pictures"), *(Column(key, key, 1, "higher") for key in ("colour", "shape", "both"))]
    title = "Text to picture: the prompt read back from the picture, % right"
    return [Table(title, columns, found.of("text_to_image"))]


TABLES: dict[str, Callable[[Found], list[Table]]] = {
    "autoencoder": autoencoder,
    "matting": matting,
    "removal": removal,
    "decomposition": decomposition,
    "completion": completion,
    "generation": generation,
}


# ---- what is required -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Required:
    """A figure that this model has to reach, by the default output and by the raw one."""

    what: str
    bound: str
    passes: Callable[[float], bool]
    default: float
    raw: float

    @property
    def met(self) -> bool:
        return self.passes(self.default) and self.passes(self.raw)


def required(found: Found) -> list[Required]:
    """Of the categories that were run."""
    made = []
    made += _of(found, "automatic matting, MAD", "matting_auto", "mad", f"<= {AUTOMATIC}", lambda v: v <= AUTOMATIC)
    closed = found.number("matting_trimap", "closed form", "mad")
    if closed is not None:
        bound = f"< {closed:.4f} (closed form's)"
        made += _of(found, "matting with a trimap, MAD", "matting_trimap", "mad", bound, lambda v: v < closed)
    part = "matting_text: as composed"
    made += _of(found, "text picks the right one of two, as composed, %", part, "right", ">= 80", lambda v: v >= 80)
    for figure, how in (("hole_pooled", "pooled"), ("hole", "mean")):
        peer = found.number("removal_rough", "Telea", figure)
        if peer is not None:
            what = f"removal, rough map, PSNR in the hole above Telea's, {how}, dB"
            made += _of(found, what, "removal_rough", figure, "> 0", lambda v: v > 0, peer)
    for figure, how in (("recomposed_pooled", "pooled"), ("recomposed", "mean")):
        made += _of(found, f"recomposition PSNR, {how}, dB", "decompose_auto", figure, ">= 22", lambda v: v >= 22)
    return made


def _of(
    found: Found, what: str, part: str, figure: str, bound: str, passes: Callable[[float], bool], less: float = 0.0
) -> list[Required]:
    default, raw = (found.number(part, name, figure) for name in (found.default, found.raw))
    return [] if default is None or raw is None else [Required(what, bound, passes, default - less, raw - less)]


def verdict(found: Found) -> Table:
    rows = [
        {"what": r.what, "bound": r.bound, "default": r.default, "raw": r.raw, "met": "yes" if r.met else "NO"}
        for r in required(found)
    ]
    columns = [Column("what", "figure"), Column("bound", "required"), Column("default", "default", 4)]
    return Table("Required / measured / met", [*columns, Column("raw", "raw", 4), Column("met", "met")], rows)


# ---- the README's ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A row of the README: a figure of the model's default output in one part, and beside it those of other methods, or
    known values, each with its word; "raw" is the model's own. form: of a number.
    """

    what: str
    required: str
    part: str
    figure: str
    form: str
    others: tuple[tuple[str | float, str], ...] = ()


LINES = (
    Line("automatic matting, MAD", "at most .05", "matting_auto", "mad", "{:.3f}",
         ((BEST_CONSTANT, "constant"), (OWN_FINDER, OWN_FINDER), ("GrabCut", "GrabCut with a rectangle"))),
    Line("matting with a trimap, MAD", "below closed form's", "matting_trimap", "mad", "{:.3f}",
         (("GrabCut", "GrabCut"), ("closed form", "closed form"), ("KNN matting", "KNN"), ("large kernels", "lkm"))),
    Line("matting with a precise mask, MAD", "", "matting_precise", "mad", "{:.3f}",
         (("GrabCut", "GrabCut"), ("the map itself", "the mask itself"))),
    Line("matting with a rough mask, MAD", "", "matting_rough", "mad", "{:.3f}",
         (("GrabCut", "GrabCut"), ("the map itself", "the mask itself"))),
    Line("text picks the right one of two objects", "80 %", "matting_text: as composed", "right", "{:.1f} %",
         ((50.0, "chance"),)),
    Line("removal, rough mask, PSNR in the hole, pooled", "above Telea's", "removal_rough", "hole_pooled", "{:.2f} dB",
         (("Telea", "Telea"), ("Navier-Stokes", "Navier-Stokes"))),
    Line("decomposition, alpha MAD of the foreground", "", "decompose_auto", "alpha_mad", "{:.3f}",
         (("GrabCut, Telea", "GrabCut and Telea"),)),
    Line("recomposition after decomposition, PSNR, pooled", "22 dB", "decompose_auto", "recomposed_pooled", "{:.2f} dB",
         (("raw", "without `fidelity`"),)),
    Line("completion keeps the given foreground, PSNR, pooled", "", "foreground_to_full", "kept_pooled", "{:.2f} dB"),
    Line("completion keeps the given background, PSNR, pooled", "", "background_to_full", "kept_pooled", "{:.2f} dB"),
    Line("text to picture, colour read back", "", "text_to_image", "colour", "{:.1f} %",
         (("chance", "chance"), ("true drawings", "true drawings"))),
    Line("text to picture, shape read back", "", "text_to_image", "shape", "{:.1f} %",
         (("chance", "chance"), ("true drawings", "true drawings"))),
    Line("autoencoder, composites, PSNR, mean of nine backgrounds", "", "autoencoder: composite", "mean", "{:.2f} dB"),
)  # fmt: skip


def readme(found: Found) -> Table:
    """One row a figure, the model's beside others' in words."""
    rows = []
    for line in LINES:
        ours = found.model if line.part.startswith("autoencoder") else found.default
        value = found.number(line.part, ours, line.figure)
        if value is None:
            continue
        beside = []
        for method, word in line.others:
            own = found.raw if method == "raw" else method
            figure = found.number(line.part, own, line.figure) if isinstance(own, str) else own
            beside += [f"{word} {_say(line.form, figure)}"] if figure is not None else []
        told = f" ({', '.join(beside)})" if beside else ""
        rows.append({"what": line.what, "required": line.required, "value": _say(line.form, value) + told})
    columns = (Column("what", "figure"), Column("required", "required"), Column("value", found.model))
    return Table("In short", columns, rows)


def _say(form: str, value: float) -> str:
    """`.084`: a share has no nought before the point."""
    said = form.format(value)
    return said[1:] if form == "{:.3f}" and said.startswith("0.") else said
