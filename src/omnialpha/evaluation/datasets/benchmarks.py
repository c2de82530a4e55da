"""The benchmarks, a row each: what is read and how, what is asked, what is measured, where it comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from omnialpha.errors import InputError
from omnialpha.tasks import TASKS

TOTAL, WEIGHTED = "total", "published weighting"  # of summaries: the rows of all pictures, in whatever category
# AlphaVAE's categories of text to image: one weighs half, the others share the other half.
PUBLISHED = ("animal", "fruit", "furniture", "mixed", "plant", "portrait", "toy", "transparent")
HALF = "mixed"
THOUSANDS = "SAD, GRAD and CONN in thousands, so they grow with the picture (GRAD as AIM: / 10); MSE, MAD are means"
PLAIN = "PSNR in dB, at most 100"


@dataclass(frozen=True)
class Benchmark:
    """A row of the table.

    Args:
        name: of its command, `omnialpha eval NAME`, and of its reader in `layouts`.
        tasks: that it can ask for, its own first; () for any, by --task.
        kind: how predictions are scored, see `scoring.SCORINGS`; "": by the category of the task.
        size: the rule of those who published it.
        count: of samples that it should have, if that is known.
        categories: whether reports have figures by category.
        unsure: what could not be confirmed of its layout.
        own_command: the module in `cli` whose command has options of its own; "" for those of all benchmarks.
    """

    name: str
    title: str
    about: str
    source: str
    license: str
    tasks: tuple[str, ...] = ()
    kind: str = ""
    scale: str = f"{THOUSANDS}; {PLAIN}"
    size: str = "as stored"
    count: int | None = None
    categories: bool = False
    unsure: str = ""
    own_command: str = ""

    def task(self, wanted: str | None) -> str:
        """The task that is asked for, by its name, or its own."""
        able = self.tasks or tuple(TASKS)
        if wanted is None and self.tasks:
            return self.tasks[0]
        if wanted is None:
            raise InputError(f"{self.name} does not say what to ask for: give --task, one of `omnialpha tasks`.")
        if wanted not in able:
            raise InputError(f"{self.name} cannot ask for {wanted!r}: use --task {' or '.join(able)}.")
        return wanted

    def instead(self, does: Callable[[str], bool], task: str) -> str:
        """The task that a method is asked for in place of one that it cannot do: another one on the same pictures with
        the same truth, as a closed form needs the trimap that a model does without. The task itself if there is none.
        """
        return task if does(task) else next((other for other in self.tasks if does(other)), task)

    def scored_as(self, task: str) -> str:
        return self.kind or TASKS[task].category

    def samples(self, data: str, task: str, limit: int | None = None) -> list[Any]:
        """In the order of the data set; limit: of each category, the first ones. InputError for another layout."""
        from omnialpha.evaluation.datasets.layouts import LAYOUTS

        found = LAYOUTS[self.name](data, task)
        made = list(_of_each(found, limit) if self.categories else islice(found, limit))
        if not made:
            raise InputError(f"{data} holds no sample of {self.title} for {task}: check the path.")
        return made


def _of_each(samples: Iterable[Any], limit: int | None) -> Iterator[Any]:
    counts: dict[str, int] = {}
    for sample in samples:
        counts[sample.category] = counts.get(sample.category, 0) + 1
        if limit is None or counts[sample.category] <= limit:
            yield sample


_REMOVAL = ("removal_precise", "removal_rough", "removal_auto")
_BY_LAYERS = ("decompose_precise", "decompose_rough", "decompose_auto")
_TRIMAP = ("matting_auto", "matting_trimap")
_matting = partial(Benchmark, tasks=_TRIMAP, kind="matting", scale=THOUSANDS)
_removal = partial(Benchmark, kind="removal", scale=PLAIN)
_RELEASED = "by its release agreement"
_P3M = "Li et al.: Privacy-Preserving Portrait Matting, 2021 (JizhiziLi/P3M)"
ROWS = (
    _matting(
        "aim-500", "AIM-500", "automatic matting of natural pictures",
        "Li, Zhang, Tao: Deep Automatic Natural Image Matting, 2021 (JizhiziLi/AIM)", _RELEASED, count=500,
    ),
    _matting(
        "refmatte-rw100", "RefMatte-RW100", "referring matting: the subject that an expression names",
        "Li, Zhang, Tao: Referring Image Matting, 2023 (JizhiziLi/RIM)", "CC BY-NC, by its release agreement",
        tasks=("matting_text",),
    ),
    _matting("p3m-500-p", "P3M-500-P", "matting of portraits with blurred faces", _P3M, _RELEASED, count=500),
    _matting("p3m-500-np", "P3M-500-NP", "matting of portraits as they were taken", _P3M, _RELEASED, count=500),
    _matting(
        "am-2k", "AM-2K, test", "matting of animals",
        "Li et al.: Bridging Composite and Real, 2022 (JizhiziLi/GFM)", _RELEASED, count=200,
    ),
    _matting(
        "composition-1k", "Composition-1k", "50 foregrounds on 20 backgrounds each, with trimaps",
        "Xu et al.: Deep Image Matting, 2017", "Adobe's, not commercial, on request", count=1000,
        tasks=("matting_trimap", "matting_auto"),
    ),
    _matting(
        "distinctions-646", "Distinctions-646, test", "50 foregrounds on 20 backgrounds each",
        "Qiao et al.: Attention-Guided Hierarchical Structure Aggregation for Image Matting, 2020", "on request",
        tasks=("matting_auto",), count=1000,
        unsure="the order of foregrounds, and how backgrounds are sized (here as in Composition-1k)",
    ),
    _matting(
        "alphamatting", "alphamatting.com, training", "27 photographs with measured mattes and trimaps",
        "Rhemann et al.: A Perceptually Motivated Online Benchmark for Image Matting, 2009", "for research", count=27,
        unsure="the folders of its own archives",
    ),
    _matting(
        "matting-folder", "Your pictures and mattes", "input/ and alpha/, and trimap/ or trimaps drawn from the mattes",
        "yours", "yours",
    ),
    _removal(
        "rord", "RORD, val", "removal of objects from photographs taken with and without them",
        "Sagong et al.: RORD: A Real-world Object Removal Dataset, 2022", "as its authors state",
        tasks=(*_REMOVAL, *_BY_LAYERS), unsure="which of its frames others have measured",
    ),
    _removal(
        "ober", "OBER, test", "removal of objects together with their shadows and reflections",
        "Zhao et al.: ObjectClear, 2026 (zjx0101/ObjectClear)", "research, not commercial, on request",
        tasks=_REMOVAL, categories=True, unsure="the folders of its earlier release",
    ),
    Benchmark(
        "alphalayers", "AlphaLayersTest", "all tasks of the paper, by --task", "OmniAlpha, 2025 (arXiv 2511.20211)",
        "as its authors state", count=100,
        unsure="its own files: the published JSONL of pairs is read, and our layered records",
    ),
    Benchmark(
        "alphatest", "AlphaTest", "text to RGBA in eight categories", "AlphaVAE, 2025 (arXiv 2507.09308)",
        "as its authors state", ("text_to_image",), "generation",
        "FID, KID and CLIP score: means over nine backgrounds", "that of each true picture (published: 1024x1024)",
        categories=True,
    ),
    Benchmark(
        "crello", "Crello, test", "decomposition of designs into layers",
        "Yamaguchi: CanvasVAE, 2021; layers as in Suzuki et al.: LayerD, 2025", "CDLA-Permissive-2.0",
        ("decompose_auto",), "decomposition", PLAIN, "shorter side 360 px",
    ),
    Benchmark(
        "folder", "Any data", "a JSONL manifest, shards or a folder of them (docs/data.md), by --task",
        "yours", "yours",
    ),
    Benchmark(
        "vae", "RGBA reconstruction", "what an autoencoder loses of pictures with alpha",
        "AlphaVAE, 2025 (arXiv 2507.09308)", "that of your pictures", ("reconstruction",), "reconstruction",
        "means over nine backgrounds", "as stored (published: 1024x1024)", categories=True, own_command="evaluate",
    ),
    Benchmark(
        "suite", "Suite on held-out layers", "a model and baselines on held-out layers, all categories",
        "yours, or drawn by this software", "yours", scale=f"{THOUSANDS}; PSNR in dB, at most 60",
        size="the model's own", own_command="suite",
    ),
)  # fmt: skip
BENCHMARKS: dict[str, Benchmark] = {row.name: row for row in ROWS}
