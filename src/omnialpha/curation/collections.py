"""The published collections of foregrounds, a row each: where colour and alpha lie, and on what terms they are given.

Layouts were compared with code that reads the collections, as no copy of them was at hand; `certainty` says how far
that goes. Terms are told in short: those that came with a copy are what holds.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PairFolders:
    """Two folders whose files bear equal names.

    Attributes:
        roots: of both, below the folder that is given; `*` is any folder, `.` that folder itself. All that are there
            are read, so that a path may name a collection, or one split of it.
        color, alpha: names of the folders, of which the first that is there counts.
        mixed: the colours are those of a photograph, with the background in soft pixels.
    """

    roots: tuple[str, ...]
    color: tuple[str, ...] = ("fg",)
    alpha: tuple[str, ...] = ("alpha",)
    mixed: bool = False


@dataclass(frozen=True)
class Collection:
    """A published collection.

    Attributes:
        title: as it calls itself.
        licence: what is known of its terms.
        certainty: what confirms its layout, or what could not be confirmed.
        folders: pairs; of several the first that is there counts. () is no pairs:
        table: layers in parquet tables instead, else RGBA files.
    """

    title: str
    licence: str
    certainty: str
    folders: tuple[PairFolders, ...] = ()
    table: bool = False


READERS = "confirmed by several independent readers"
ADOBE = ("Training_set/Adobe-licensed images", "Training_set/Other", "Test_set/Adobe-licensed images")

COLLECTIONS: dict[str, Collection] = {
    "adobe-image-matting": Collection(
        "Adobe Image Matting",
        "its own agreement, signed to get it: research only, not to be passed on",
        READERS,
        (PairFolders((*(f"Combined_Dataset/{s}" for s in ADOBE), *ADOBE, "Adobe-licensed images", "Other", ".")),),
    ),
    "am-2k": Collection(
        "AM-2K",
        "release agreement that names the MIT licence",
        "confirmed by its own training code, which has fg/ of estimated colours too: they are estimated here instead",
        (PairFolders(("AM-2k/train", "AM-2k/validation", "train", "validation", "."), ("original",), ("mask",), True),),
    ),
    "distinctions-646": Collection(
        "Distinctions-646",
        "given on request: research only",
        READERS,
        (
            PairFolders(
                ("Distinctions-646/Train", "Distinctions-646/Test", "Train", "Test", "."), alpha=("GT", "alpha")
            ),
        ),
    ),
    "hhm-2k": Collection(
        "HHM-2K",
        "not stated",
        "confirmed by its own script that lists files; the same folder without HHM2K/ is a guess",
        (PairFolders(("HHM2K", "HHM-2K", "."), ("images",), ("alphas",), True),),
    ),
    "human-1k": Collection(
        "Human-1K",
        "research only, by the page of its authors' code",
        "not confirmed: the paper that is cited for it publishes Human-2K, of which no reader was found; fg/ and "
        "alpha/, or image/ and alpha/, are guesses after its sister Distinctions-646",
        (
            PairFolders(("Human-*/train", "Human-*/test", "Human-*", "train", "test", "."), ("fg",), ("alpha", "GT")),
            PairFolders(("Human-*/train", "Human-*/test", "Human-*", "train", "test", "."), ("image",), mixed=True),
        ),
    ),
    "p3m-500-np": Collection(
        "P3M-500-NP",
        "release agreement that names the MIT licence; faces of celebrities are not blurred",
        READERS,
        (
            PairFolders(
                ("P3M-10k/validation/P3M-500-NP", "validation/P3M-500-NP", "P3M-500-NP", "."),
                ("original_image",), ("mask",), True,
            ),
        ),
    ),
    "photomatte85": Collection(
        "PhotoMatte85",
        "not stated for the pictures; the code beside them is MIT",
        "RGBA files confirmed by several readers; whether they lie in folders does not matter",
    ),
    "realworldportrait-636": Collection(
        "RealWorldPortrait-636",
        "research only, CC BY-NC 2.0 by the page of its authors' code",
        READERS + ", of which one has images/ for image/",
        (PairFolders(("RealWorldPortrait-636", "."), ("image", "images"), ("alpha",), True),),
    ),
    "simd": Collection(
        "SIMD",
        "not stated; a part of it is Adobe Image Matting, under that agreement",
        "a folder a class with fg/ and alpha/ confirmed by its own script for test files; folders above are a guess",
        (PairFolders(("SIMD/*", "SIMD/*/*", "*", "*/*", ".")),),
    ),
    "transparent-460": Collection(
        "Transparent-460",
        "given on request: research only, nothing commercial",
        READERS,
        (PairFolders(("Transparent-460/Train", "Transparent-460/Test", "Train", "Test", ".")),),
    ),
    "prismlayers": Collection(
        "PrismLayers",
        "Apache-2.0 by its pages on the hub",
        "columns confirmed by the hub's page, boxes as corners by a reader that trains on it (another calls them x, y, "
        "width, height); that layers are listed back to front follows from how they are pasted",
        table=True,
    ),
}  # fmt: skip
