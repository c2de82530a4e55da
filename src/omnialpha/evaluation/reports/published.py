"""What others have printed: figures to stand beside, as they were printed, with what does not fit in them.

Facts of papers, read in their text; the notes are recomputed from the figures by a test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from omnialpha.evaluation.reports.report import Column

UNSAID = "not stated"
V1 = "OmniAlpha, arXiv 2511.20211v1"
V2 = "OmniAlpha, arXiv 2511.20211v2"
ALPHAVAE = "AlphaVAE, arXiv 2507.09308"
QWEN = "Qwen-Image-Layered, arXiv 2512.15603"
THOUSANDS = "SAD, GRAD and CONN in thousands, MSE and MAD means"


class Printed(float):
    """A number that is shown with the digits it was printed with."""

    text: str

    def __new__(cls, text: str) -> Self:
        made = super().__new__(cls, text)
        made.text = text
        return made

    def __format__(self, spec: str) -> str:
        return self.text


@dataclass(frozen=True)
class Note:
    """methods: the rows that it is about; (): the whole table."""

    text: str
    methods: tuple[str, ...] = ()


@dataclass(frozen=True)
class Published:
    """Figures on one set. place: in the source. benchmark, tasks: of `omnialpha eval`, what compares with them."""

    title: str
    place: str
    benchmark: str
    tasks: tuple[str, ...]
    source: str
    columns: tuple[Column, ...]
    rows: Mapping[str, Mapping[str, Printed]]  # by method
    scale: str
    n: str = UNSAID
    resolution: str = UNSAID
    region: str = UNSAID
    notes: tuple[Note, ...] = field(default=())


def _rows(columns: Sequence[Column], text: str) -> dict[str, dict[str, Printed]]:
    """Lines of `method: number ...`, a number a column; a dash is none."""
    made = {}
    for line in text.strip().splitlines():
        method, numbers = line.rsplit(":", 1)
        pairs = zip(columns, numbers.split(), strict=True)
        made[method.strip()] = {column.key: Printed(number) for column, number in pairs if number != "-"}
    return made


# ---- columns --------------------------------------------------------------------------------------------------------

SAD = Column("sad", "SAD", 3, "lower")
MSE = Column("mse", "MSE", 4, "lower")
MAD = Column("mad", "MAD", 4, "lower")
GRAD = Column("grad", "GRAD", 3, "lower")
CONN = Column("conn", "CONN", 3, "lower")
PSNR = Column("psnr", "PSNR (dB)", 2, "higher")
SSIM = Column("ssim", "SSIM", 4, "higher")
LPIPS = Column("lpips", "LPIPS", 4, "lower")
FID = Column("fid", "FID", 2, "lower")
CLIP_FID = Column("clip_fid", "CLIP-FID", 3, "lower")
CLIP = Column("clip_score", "CLIP score", 4, "higher")
WINS = (Column("wins", "wins, %", 0), Column("ties", "ties, %", 0), Column("losses", "losses, %", 0))
GENERATION = (FID, CLIP)
REFERRING = (SAD, MSE, GRAD, CONN)
MATTING = (SAD, MSE, MAD, GRAD, CONN)
REMOVAL = (PSNR, LPIPS, FID, CLIP_FID)
RECONSTRUCTION = (PSNR, SSIM, Column("fid", "rFID", 2, "lower"), LPIPS)
LAYERS = tuple(
    Column(f"{key}_{merges}", f"{title} ({merges})", 4, better)
    for key, title, better in (("rgb_l1", "RGB L1", "lower"), ("alpha_iou", "alpha IoU", "higher"))
    for merges in range(6)
)

# ---- notes ----------------------------------------------------------------------------------------------------------

RESCALED = Note(
    "the text says that SAD, MAD, GRAD and CONN were multiplied by 1000 and MSE by .001, which cannot be: MSE would "
    "have been above 1. The usual scale is meant: on AIM-500 (table 5) SAD in thousands over MAD is 1.69 megapixels a "
    "picture in each of the three rows"
)
SIZES = Note(
    "on the same pictures SAD over MAD is 2.57 megapixels for AIM, 1.69 for SmartMatting and 2.69 for OmniAlpha: not "
    "all of these figures can be right"
)
SWAPPED = Note(
    "GRAD and CONN look swapped: CONN is near SAD in mattes, as in OmniAlpha's row; here GRAD is, and CONN is less "
    "than half of SAD",
    ("AIM", "SmartMatting"),
)


def _impossible(*methods: str) -> Note:
    return Note("MSE is above MAD, which cannot be for mattes in [0, 1]: of a difference d, d^2 <= d", methods)


ANY_TEXT = ("text_to_image",)
REFERRED = ("matting_text",)
FREE = ("matting_auto",)
REMOVED = tuple(f"{kind}_{way}" for kind in ("removal", "decompose") for way in ("auto", "precise", "rough"))
COMPLETED = "share of samples, in percent; asked twice with the order swapped (models), majority of 10 (people)"
NO_GROUND = "FID on Inception features, CLIP score the raw cosine; what transparency was put on is not stated"
SATURATED = Note("above the true pictures' own CLIP score: the figure has no headroom left", ("OmniAlpha",))
TAKEN = Note(
    "equal to what the AlphaVAE paper prints (160.2664, 155.6606): compare only with its protocol, the mean over nine "
    "backgrounds",
    ("LayerDiffuse", "AlphaVAE"),
)

TABLES = (
    Published(
        "Text to RGBA, AIM-500", "table 2", "aim-500", ANY_TEXT, V1, GENERATION,
        _rows(GENERATION, """
            true pictures: 0 0.3365
            LayerDiffuse: 160.27 0.3213
            AlphaVAE: 155.66 0.3195
            OmniAlpha: 157.34 0.3417
        """),
        NO_GROUND, n="500 in the set",
        notes=(Note("the best FID is AlphaVAE's, not OmniAlpha's", ("AlphaVAE",)), TAKEN, SATURATED),
    ),
    Published(
        "Text to RGBA, AlphaLayersTest", "table 2", "alphalayers", ANY_TEXT, V1, GENERATION,
        _rows(GENERATION, """
            true pictures: 0 0.3273
            LayerDiffuse: 160.12 0.3200
            AlphaVAE: 154.37 0.3239
            OmniAlpha: 118.37 0.3329
        """),
        NO_GROUND, n="100",
        notes=(Note("FID of 100 pictures on 2048 features is biased upwards, and compares only at equal n"), SATURATED),
    ),
    Published(
        "Completion, AlphaLayersTest: OmniAlpha against LayerDiffuse", "table 3", "judge", (), V1, WINS,
        _rows(WINS, """
            foreground to full, by Qwen3-VL: 88 4 8
            foreground to full, by GPT-4o: 85 6 9
            foreground to full, by people: 91 5 4
            background to full, by Qwen3-VL: 85 12 3
            background to full, by GPT-4o: 87 8 5
            background to full, by people: 95 2 3
        """),
        COMPLETED, n="100", region="whole picture",
    ),
    Published(
        "Referring matting, RefMatte-RW100", "table 4", "refmatte-rw100", REFERRED, V1, REFERRING,
        _rows(REFERRING, """
            MAM: 16.96 0.0626 8.560 10.78
            MatAny: 19.92 0.7207 9.570 7.710
            TeachDiffusionMatting: 7.370 0.0264 6.550 5.310
            OmniAlpha: 6.751 0.0242 1.904 6.689
        """),
        THOUSANDS,
        notes=(
            Note(
                "an MSE of .7207 with this SAD needs pictures of at most .028 megapixels, ten times fewer than the "
                "other rows allow (.27 to .28): .0721 may be meant; on AlphaLayersTest it is .0717",
                ("MatAny",),
            ),
            RESCALED,
        ),
    ),
    Published(
        "Referring matting, AlphaLayersTest", "table 4", "alphalayers", REFERRED, V1, REFERRING,
        _rows(REFERRING, """
            MAM: 17.16 0.0659 8.930 10.66
            MatAny: 20.17 0.0717 9.680 7.940
            TeachDiffusionMatting: 8.210 0.0312 7.240 7.690
            OmniAlpha: 5.889 0.0131 1.034 5.847
        """),
        THOUSANDS, n="100", notes=(RESCALED,),
    ),
    Published(
        "Automatic matting, AIM-500", "table 5", "aim-500", FREE, V1, MATTING,
        _rows(MATTING, """
            AIM: 48.09 0.0183 0.0285 47.58 21.74
            SmartMatting: 34.30 0.0129 0.0203 31.49 13.98
            OmniAlpha: 7.796 0.0136 0.0046 13.53 7.8820
        """),
        THOUSANDS, n="500 in the set",
        notes=(
            _impossible("OmniAlpha"),
            SWAPPED,
            Note(
                "the abstract's reduction of SAD by 84.8 % is 83.8 % by these figures, against AIM; it is 77.3 % "
                "against SmartMatting, the better baseline",
                ("OmniAlpha",),
            ),
            RESCALED,
        ),
    ),
    Published(
        "Automatic matting, AlphaLayersTest", "table 5", "alphalayers", FREE, V1, MATTING,
        _rows(MATTING, """
            AIM: 50.10 0.0201 0.0195 49.14 23.61
            SmartMatting: 37.35 0.0142 0.0221 32.51 14.12
            OmniAlpha: 6.177 0.0128 0.0023 8.552 6.199
        """),
        THOUSANDS, n="100", notes=(_impossible("AIM", "OmniAlpha"), SWAPPED, SIZES, RESCALED),
    ),
    Published(
        "Removal, RORD", "table 6", "rord", REMOVED, V1, REMOVAL,
        _rows(REMOVAL, """
            LayerDecomp: 24.79 0.1320 21.73 5.735
            OmniAlpha (decomposition): 24.76 0.1268 20.26 5.142
            OmniAlpha (removal): 25.14 0.1307 22.31 5.513
        """),
        "PSNR in dB; neither LPIPS' network nor the features of FID and CLIP-FID are stated",
        notes=(Note("PSNR is below LayerDecomp's", ("OmniAlpha (decomposition)",)),
               Note("FID is above LayerDecomp's", ("OmniAlpha (removal)",))),
    ),
    Published(
        "Removal, OBER", "", "ober", REMOVED, V2, (PSNR,),
        _rows((PSNR,), "OmniAlpha: 31.389"), "PSNR in dB",
    ),
    Published(
        "Text to RGBA, AlphaTest", "table 3", "alphatest", ANY_TEXT, ALPHAVAE, (FID,),
        _rows((FID,), """
            LayerDiffuse: 80.27
            AlphaVAE: 74.1224
            AlphaVAE without reference KL: 74.5844
        """),
        "mean over nine backgrounds, through JPEG",
    ),
    Published(
        "RGBA reconstruction, AIM-500", "table 2", "vae", (), ALPHAVAE, RECONSTRUCTION,
        _rows(RECONSTRUCTION, """
            LayerDiffuse (SDXL): 32.0879 0.9436 17.7023 0.0418
            AlphaVAE (SDXL): 35.7446 0.9576 10.9178 0.0495
            AlphaVAE (FLUX): 36.9439 0.9737 11.7884 0.0283
            RGBA-VAE (Qwen-Image): 38.8252 0.9802 5.3132 0.0123
        """),
        "means over nine backgrounds, through JPEG", n="500 in the set", region="whole picture",
        notes=(Note(f"from {QWEN}, table 3, which says only that pictures were put on one colour",
                    ("RGBA-VAE (Qwen-Image)",)),),
    ),
    Published(
        "RGBA reconstruction, AlphaTest", "table 2", "vae", (), ALPHAVAE, RECONSTRUCTION,
        _rows(RECONSTRUCTION, """
            LayerDiffuse (SDXL): 32.4531 0.9473 6.4832 0.0324
            AlphaVAE (SDXL): 35.5597 0.9605 3.7305 0.0402
            AlphaVAE (FLUX): 38.1987 0.9792 1.6600 0.0145
        """),
        "means over nine backgrounds, through JPEG", region="whole picture",
    ),
    Published(
        "Decomposition, Crello", "table 1", "crello", ("decompose_auto",), QWEN, LAYERS,
        _rows(LAYERS, """
            VLM + Hi-SAM: .1197 .1029 .0892 .0807 .0755 .0726 .5596 .6302 .6860 .7222 .7465 .7589
            YOLO + Hi-SAM: .0962 .0833 .0710 .0630 .0592 .0579 .5697 .6537 .7169 .7567 .7811 .7897
            LayerD: .0709 .0541 .0457 .0419 .0403 .0396 .7520 .8111 .8435 .8564 .8622 .8650
            Qwen-Image-Layered: .0594 .0490 .0393 .0377 .0364 .0363 .8705 .8863 .9105 .9121 .9156 .9160
        """),
        "colours in [0, 1]; in brackets how many merges of neighbours are allowed",
        notes=(Note("was trained on Crello for these figures", ("Qwen-Image-Layered",)),
               Note("RGB L1 is said to be weighted by the true alpha; LayerD's code counts all pixels with true alpha "
                    "> 0 alike (docs/metrics.md)"),),
    ),
)  # fmt: skip


def comparable(benchmark: str, task: str = "") -> list[Published]:
    """The tables that a run compares with."""
    return [t for t in TABLES if t.benchmark == benchmark and (not t.tasks or task in t.tasks)]
