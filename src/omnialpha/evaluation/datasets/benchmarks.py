"""The benchmarks, a row each: what is read and how, what is asked, what is measured, where it comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from omnialpha.errors import InputError
from omnialpha.tasks import TASKS

if TYPE_CHECKING:
    pass

THOUSANDS = "SAD, GRAD and CONN in thousands, so they grow with the picture (GRAD as AIM: / 10); MSE, MAD are means"
PLAIN = "PSNR in dB, at most 100"


@dataclass(frozen=True)
class Benchmark:
    """A row of the table.

    Args:
        name: of its command, `omnialpha eval NAME`.
        layout: a reader in `layouts`; "" for samples that lie in no folder.
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
    layout: str
    tasks: tuple[str, ...]
    kind: str
    size: str
    scale: str
    source: str
    license: str
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

        if limit is not None and limit < 1:
            raise InputError(f"limit={limit} is out of range: use 1 or more.")
        found = LAYOUTS[self.layout](data, task)
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
ROWS = (
    Benchmark(
        "aim-500", "AIM-500", "automatic matting of natural pictures", "aim_500", _TRIMAP, "matting",
        "as stored", THOUSANDS, "Li, Zhang, Tao: Deep Automatic Natural Image Matting, 2021 (JizhiziLi/AIM)",
        "by its release agreement", 500,
    ),
    Benchmark(
        "refmatte-rw100", "RefMatte-RW100", "referring matting: the subject that an expression names",
        "refmatte_rw100", ("matting_text",), "matting", "as stored", THOUSANDS,
        "Li, Zhang, Tao: Referring Image Matting, 2023 (JizhiziLi/RIM)", "CC BY-NC, by its release agreement",
    ),
    Benchmark(
        "p3m-500-p", "P3M-500-P", "matting of portraits with blurred faces", "p3m_500_p", _TRIMAP, "matting",
        "as stored", THOUSANDS, "Li et al.: Privacy-Preserving Portrait Matting, 2021 (JizhiziLi/P3M)",
        "by its release agreement", 500,
    ),
    Benchmark(
        "p3m-500-np", "P3M-500-NP", "matting of portraits as they were taken", "p3m_500_np", _TRIMAP, "matting",
        "as stored", THOUSANDS, "Li et al.: Privacy-Preserving Portrait Matting, 2021 (JizhiziLi/P3M)",
        "by its release agreement", 500,
    ),
    Benchmark(
        "am-2k", "AM-2K, test", "matting of animals", "am_2k", _TRIMAP, "matting", "as stored", THOUSANDS,
        "Li et al.: Bridging Composite and Real, 2022 (JizhiziLi/GFM)", "by its release agreement", 200,
    ),
    Benchmark(
        "composition-1k", "Composition-1k", "50 foregrounds on 20 backgrounds each, with trimaps", "composition_1k",
        ("matting_trimap", "matting_auto"), "matting", "as stored", THOUSANDS,
        "Xu et al.: Deep Image Matting, 2017", "Adobe's, not commercial, on request", 1000,
    ),
    Benchmark(
        "distinctions-646", "Distinctions-646, test", "50 foregrounds on 20 backgrounds each", "distinctions_646",
        ("matting_auto",), "matting", "as stored", THOUSANDS,
        "Qiao et al.: Attention-Guided Hierarchical Structure Aggregation for Image Matting, 2020", "on request", 1000,
        unsure="the order of foregrounds, and how backgrounds are sized (here as in Composition-1k)",
    ),
    Benchmark(
        "alphamatting", "alphamatting.com, training", "27 photographs with measured mattes and trimaps", "alphamatting",
        _TRIMAP, "matting", "as stored", THOUSANDS,
        "Rhemann et al.: A Perceptually Motivated Online Benchmark for Image Matting, 2009", "for research", 27,
        unsure="the folders of its own archives",
    ),
    Benchmark(
        "matting-folder", "Your pictures and mattes", "input/ and alpha/, and trimap/ or trimaps drawn from the mattes",
        "matting_folder", _TRIMAP, "matting", "as stored", THOUSANDS, "yours", "yours",
    ),
    Benchmark(
        "rord", "RORD, val", "removal of objects from photographs taken with and without them", "rord",
        (*_REMOVAL, *_BY_LAYERS),
        "removal", "as stored", PLAIN, "Sagong et al.: RORD: A Real-world Object Removal Dataset, 2022",
        "as its authors state", unsure="which of its frames others have measured",
    ),
    Benchmark(
        "ober", "OBER, test", "removal of objects together with their shadows and reflections", "ober", _REMOVAL,
        "removal", "as stored", PLAIN, "Zhao et al.: ObjectClear, 2026 (zjx0101/ObjectClear)",
        "research, not commercial, on request", categories=True, unsure="the folders of its earlier release",
    ),
    Benchmark(
        "alphalayers", "AlphaLayersTest", "all tasks of the paper, by --task", "records", (), "",
        "as stored", f"{THOUSANDS}; {PLAIN}", "OmniAlpha, 2025 (arXiv 2511.20211)", "as its authors state", 100,
        unsure="its own files: the published JSONL of pairs is read, and our layered records",
    ),
    Benchmark(
        "alphatest", "AlphaTest", "text to RGBA in eight categories", "alphatest", ("text_to_image",), "generation",
        "that of each true picture (published: 1024x1024)", "FID, KID and CLIP score: means over nine backgrounds",
        "AlphaVAE, 2025 (arXiv 2507.09308)", "as its authors state", categories=True,
    ),
    Benchmark(
        "crello", "Crello, test", "decomposition of designs into layers", "crello", ("decompose_auto",),
        "decomposition", "shorter side 360 px", PLAIN,
        "Yamaguchi: CanvasVAE, 2021; layers as in Suzuki et al.: LayerD, 2025", "CDLA-Permissive-2.0",
    ),
    Benchmark(
        "folder", "Any data", "a JSONL manifest, shards or a folder of them (docs/data.md), by --task",
        "records", (), "", "as stored", f"{THOUSANDS}; {PLAIN}", "yours", "yours",
    ),
    Benchmark(
        "vae", "RGBA reconstruction", "what an autoencoder loses of pictures with alpha", "rgba_pictures",
        ("reconstruction",), "reconstruction", "as stored (published: 1024x1024)", "means over nine backgrounds",
        "AlphaVAE, 2025 (arXiv 2507.09308)", "that of your pictures", categories=True, own_command="evaluate",
    ),
    Benchmark(
        "suite", "Suite on held-out layers", "a model and baselines on held-out layers, all categories", "",
        (), "", "the model's own", f"{THOUSANDS}; PSNR in dB, at most 60", "yours, or drawn by this software", "yours",
        own_command="suite",
    ),
)  # fmt: skip
BENCHMARKS: dict[str, Benchmark] = {row.name: row for row in ROWS}
