"""The parts of a model, found in folders and among stored downloads; no weights are read, no network is used."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from omnialpha.errors import InputError
from omnialpha.models.checkpoints import hub
from omnialpha.models.checkpoints import instructions as instruction_files
from omnialpha.models.checkpoints.card import CARD, INDEX, Card, Defaults, FamilyName, family_of, forget_origin
from omnialpha.models.checkpoints.releases import Release, release_of
from omnialpha.models.families import FAMILIES
from omnialpha.models.lora.adapter_file import AdapterFile, describe, sampling_settings

__all__ = ["BUNDLED", "CARD", "Card", "Defaults", "Parts", "forget_origin", "resolve"]

BUNDLED = {"nano": Path(__file__).parents[2] / "weights" / "nano"}
VAE_FOLDERS = ("rgba_vae", "finetune_VAE", "vae")  # the first that is there
NO_INSTRUCTIONS = (
    "{name} was trained on texts that are not stored here, so that it is asked in our own wording: pull it again, or "
    "give task and text with --instructions FILE"
)

LoraLike = str | Path | AdapterFile


@dataclass(frozen=True)
class Parts:
    """The folders of a model.

    Args:
        transformer: of its weights and config.json.
        vae: the same.
        text: the folder that holds the family's `text_folders`.
        own_card: of the model without adapters.
        adapters: in use, in order.
        finder: a folder or an ONNX file.
        warning: what makes it worse than it was published, if anything.
    """

    transformer: Path
    vae: Path
    text: Path
    own_card: Card
    adapters: tuple[AdapterFile, ...] = ()
    finder: Path | None = None
    warning: str = ""

    @property
    def card(self) -> Card:
        """The model's card with the schedule, steps and guidance that few-step adapters bring."""
        settings, card = sampling_settings(self.adapters), self.own_card
        if settings.shift is not None:
            card = dataclasses.replace(card, shift=settings.shift)
        changes = {k: v for k in ("steps", "guidance") if (v := getattr(settings, k)) is not None}
        sampling = {key: dataclasses.replace(defaults, **changes) for key, defaults in card.sampling.items()}
        return dataclasses.replace(card, sampling=sampling)

    def with_lora(self, lora: LoraLike | Iterable[LoraLike] = ()) -> Parts:
        """A copy with these adapters in the place of the present ones; see `resolve`."""
        return dataclasses.replace(self, adapters=_adapters(None, None, lora))


def resolve(
    where: str | Path | None = None,
    *,
    base: str | Path | None = None,
    vae: str | Path | None = None,
    lora: LoraLike | Iterable[LoraLike] = (),
    finder: str | Path | None = None,
    instructions: str | Path | None = None,
) -> Parts:
    """Find the parts of a model, in folders and by ids that `omnialpha pull` has stored.

    Args:
        where: a bundled name (nano, if no base is given), an id (`owner/name[@revision][:path]`), a folder of ours, of
            a diffusers pipeline, or of a release that holds only what it adds.
        base: the model that fills in what `where` lacks.
        vae: its folder, or that of a model that has one.
        lora: `path[:weight][@preset]`, of a file, a folder or an id; applied after those that `where` brings.
        finder: an ONNX file or a folder in the place of the card's, for models that have one.
        instructions: a JSON or TOML file, task -> the text that it was trained on, in the place of those stored.

    Returns:
        The folders, and the card. No weights are read.

    Raises:
        InputError: something is not there, with what to do.
    """
    main = None if where is None and base is not None else _folder("nano" if where is None else where)
    release = release_of(main, hub.origin(main)[0]) if main else None
    sources = [main] if main else []
    text_folders = FAMILIES[_family(sources)].text_folders
    wanted = ("transformer", *text_folders, *(() if vae else ("vae",)))
    lacking = main is None or not all(_part(main, part) for part in wanted)
    if base is not None and not lacking:
        raise InputError(f"{main} is a whole model: leave out the base {base}.")
    if base is not None:
        sources.append(_folder(base))
    elif lacking and release and release.base:
        try:
            sources.append(_folder(release.base))
        except InputError as error:
            reason = str(error).rstrip(".")
            raise InputError(f"{main} stands on {release.base}; {reason}, or give its folder with --base.") from None
    transformer, text = _find(sources, "transformer"), _find(sources, *FAMILIES[_family(sources)].text_folders).parent
    texts = instruction_files.read(instructions) if instructions else instruction_files.stored(main) if main else {}
    card = _card(sources, release).with_instructions(texts)
    return Parts(
        transformer=transformer,
        vae=_find(sources, "vae") if vae is None else vae_folder(vae),
        text=text,
        own_card=card,
        adapters=_adapters(main, release, lora),
        finder=_finder(sources, card, finder),
        warning=NO_INSTRUCTIONS.format(name=card.name) if release and release.texts and not card.instructions else "",
    )


# ---- folders ---------------------------------------------------------------------------------------------------


def _folder(where: str | Path) -> Path:
    """Of a bundled name, a path or a stored id; InputError with what there is otherwise."""
    name = str(where)
    folder = BUNDLED.get(name, Path(name).expanduser())
    if folder.is_dir():
        return folder
    if ref := hub.Ref.parse(name):
        return hub.find(ref)
    raise InputError(f"model {name!r} is neither bundled ({', '.join(BUNDLED)}) nor a folder: check the path.")


def _family(sources: Sequence[Path]) -> FamilyName:
    """Of the first source that says what it is."""
    return next((family for source in sources if (family := family_of(source))), "qwen")


def _part(folder: Path, part: str) -> Path | None:
    places = VAE_FOLDERS if part == "vae" else (part,)
    return next((folder / place for place in places if (folder / place).is_dir()), None)


def _find(sources: Sequence[Path], *parts: str) -> Path:
    """The folder of the first of `parts`, in the first source that has them all."""
    for source in sources:
        first, *others = (_part(source, part) for part in parts)
        if first and all(others):
            return first
    missing = next(part for part in parts if not _part(sources[-1], part))
    raise InputError(
        f"model folder {sources[-1]} lacks {missing}/: download or convert it again, or give the model that fills it "
        "in with --base."
    )


def vae_folder(where: str | Path) -> Path:
    """The folder of a VAE, by a bundled name, its path, the path of a model that has one, or a stored id."""
    folder = _folder(where)
    if (folder / "config.json").is_file():
        return folder
    if found := _part(folder, "vae"):
        return found
    raise InputError(f"{folder} holds no config.json and no vae/: give the folder of a VAE.")


def _finder(sources: Sequence[Path], card: Card, other: str | Path | None) -> Path | None:
    """Of the first source that has it, or the other one."""
    if other is not None:
        if card.finder is None:
            raise InputError(f"{card.name} takes no hints of a finder: leave out {other}.")
        return Path(other).expanduser()
    found = [folder / card.finder for folder in sources] if card.finder else [None]
    return next((path for path in found if path and path.exists()), found[0])


# ---- adapters and card -----------------------------------------------------------------------------------------


def _adapters(
    main: Path | None, release: Release | None, lora: LoraLike | Iterable[LoraLike]
) -> tuple[AdapterFile, ...]:
    """Those that a folder of ours lists, that a release brings and that are asked for, with their settings."""
    files: list[AdapterFile] = []
    if main and (main / CARD).is_file():
        files += [AdapterFile(path=main / name, weight=weight) for name, weight in Card.read(main).adapters.items()]
    if main and release and release.lora:
        files.append(AdapterFile(path=main / release.lora))
    for one in [lora] if isinstance(lora, str | Path | AdapterFile) else lora:
        file = one if isinstance(one, AdapterFile) else AdapterFile.parse(str(one))
        ref = None if file.path.exists() or file is one else hub.Ref.parse(file.path.as_posix())
        if ref:
            file = dataclasses.replace(file, path=hub.find(ref), name="")
        own = release_of(file.path, hub.origin(file.path)[0]) if file.path.is_dir() else None
        files.append(dataclasses.replace(file, path=file.path / own.lora) if own and own.lora else file)
    return tuple(map(describe, files))


def _card(sources: Sequence[Path], release: Release | None) -> Card:
    """Of the first source that says what it is, with what the release changes."""
    source = next((folder for folder in sources if (folder / CARD).is_file() or (folder / INDEX).is_file()), None)
    if source is None:
        raise InputError(f"{sources[-1]} has no {CARD} and no {INDEX}: it is no model folder.")
    card = Card.read(source) if (source / CARD).is_file() else Card.of_diffusers(source, *_identity(source))
    if source != sources[0]:
        name, licence = _identity(sources[0])
        licence = licence if licence == card.license else f"{licence} (base: {card.license})"
        card = dataclasses.replace(card, name=name, license=licence)
    if release:
        card = dataclasses.replace(card, **release.card)
    return dataclasses.replace(card, adapters={})


def _identity(folder: Path) -> tuple[str, str]:
    """Name and licence as recorded when the folder was pulled, or else its own name and the table's licence."""
    name, licence = hub.origin(folder)
    release = release_of(folder, name)
    return name or folder.resolve().name, licence or (release and release.license) or "not stated"
