"""Models of the Hugging Face hub in plain folders: downloaded once, found without the network from then on.

`$OMNIALPHA_HOME/models/OWNER--NAME/REVISION/` holds a model's files under their own names, and pull.json: where they
come from and their checksums. huggingface_hub downloads them (docs/decisions/0018-hub-downloads.md).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from omnialpha.errors import InputError
from omnialpha.files import atomic_write
from omnialpha.models.checkpoints import instructions
from omnialpha.models.checkpoints.releases import ABOUT, ANY, RELEASES, Release

RECORD = "pull.json"
REF = re.compile(r"(?P<id>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[^:]+))?(?::(?P<path>.+))?")
OFFLINE = ("OMNIALPHA_OFFLINE", "HF_HUB_OFFLINE")
DEFAULT_ENDPOINT = "https://huggingface.co"


@dataclass(frozen=True)
class Ref:
    """`owner/name[@revision][:path]`, the path being a folder or a file of the repository."""

    id: str
    revision: str = "main"
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Ref | None:
        """Read a reference from a string; None where the string is none."""
        match = REF.fullmatch(text)
        return cls(**{k: v for k, v in match.groupdict().items() if v}) if match else None

    @property
    def folder(self) -> Path:
        """The folder where its repository is stored, or would be."""
        return home() / "models" / self.id.replace("/", "--") / self.revision.replace("/", "--")

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision != "main" else ""
        return self.id + revision + (f":{self.path}" if self.path else "")


@dataclass(frozen=True)
class Offer:
    """What is about to be downloaded, to be agreed to. Sizes in bytes; missing: of what is not here yet."""

    id: str
    revision: str
    license: str
    page: str
    folder: str
    size: int
    missing: int


@dataclass
class Record:
    """pull.json. wanted: the files that were asked for; verified: those that are here, with their checksums."""

    id: str
    revision: str
    commit: str
    license: str
    wanted: list[str] = field(default_factory=list)
    verified: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """The record of a folder; None where nothing was pulled into it, or the record is damaged."""
        try:
            return cls(**json.loads((folder / RECORD).read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        atomic_write(folder / RECORD, json.dumps(asdict(self), indent=2) + "\n")


def home() -> Path:
    """The folder of everything that is stored: OMNIALPHA_HOME, or omnialpha in the user's cache folder."""
    if given := os.environ.get("OMNIALPHA_HOME"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "omnialpha"


def endpoint() -> str:
    """The address of the hub: HF_ENDPOINT, or huggingface.co."""
    return (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


def offline_by() -> str | None:
    """The environment variable that forbids the network, if one does."""
    return next((name for name in OFFLINE if os.environ.get(name, "").lower() in ("1", "on", "yes", "true")), None)


# ---- what is here ----------------------------------------------------------------------------------------------


def find(ref: Ref) -> Path:
    """The stored folder or file of a reference. Raises InputError where nothing is stored, or only a part of it."""
    path, why = _look(ref)
    if why:
        raise InputError(f"{why}: run `omnialpha pull {ref}`.")
    return path


def _look(ref: Ref) -> tuple[Path, str]:
    """Where a reference is, ours or in the Hugging Face cache, and why it cannot be used, if so."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    folder, record = ref.folder, Record.read(ref.folder)
    if record is None:
        with suppress(LocalEntryNotFoundError):  # where diffusers and others have left it
            folder = Path(snapshot_download(ref.id, revision=ref.revision, local_files_only=True))
    path = folder / ref.path
    for name in record.wanted if record else ():
        inside = not ref.path or name == ref.path or name.startswith(f"{ref.path.rstrip('/')}/")
        if inside and (name not in record.verified or not (folder / name).is_file()):  # type: ignore[union-attr]
            return path, f"{ref} is stored without {name}, as its download was not finished"
    if not folder.is_dir():
        return path, f"{ref} is neither a folder nor a stored model"
    return path, "" if path.exists() else f"{ref.id} is stored in {folder} without {ref.path}"


def origin(folder: Path) -> tuple[str | None, str | None]:
    """The id that a folder was pulled from, by us or into the Hugging Face cache, and the licence that was shown."""
    if record := Record.read(folder):
        return record.id, record.license
    cached = re.fullmatch(r"models--(.+)--(.+)", folder.parent.parent.name)
    return "/".join(cached.groups()) if cached else None, None


# ---- what is there ---------------------------------------------------------------------------------------------


def pull(ref: Ref, *, agree: Callable[[Offer], bool] = lambda offer: True, offline: bool = False) -> Path:
    """Store what is needed of a model, or the path that `ref` names. Files that are here and right are kept.

    Args:
        agree: asked before anything is downloaded.
        offline: whether the network is forbidden.

    Returns:
        The model's folder.

    Raises:
        InputError: not agreed to, not reachable, refused, damaged, or no space; with what to do.
    """
    from filelock import FileLock
    from huggingface_hub import hf_hub_download

    folder = ref.folder
    if by := "--offline" if offline else offline_by():
        if why := _look(ref)[1]:
            raise InputError(f"{why}, and {by} forbids the network: pull it without.")
        return folder
    with _explained(ref):
        files, record = _listing(ref)
        missing = sum(file.size for name, file in files.items() if name not in record.verified)
        size, page = sum(file.size for file in files.values()), f"{endpoint()}/{ref.id}"
        offer = Offer(ref.id, ref.revision, record.license, page, str(folder), size, missing)
        if len(record.verified) < len(files) and not agree(offer):
            raise InputError(f"{ref} was not downloaded: its licence, {record.license}, was not agreed to.")
        check_space(folder, missing, str(folder))
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=0):  # one process at a time
            record.write(folder)
            for name in [name for name in files if name not in record.verified]:
                hf_hub_download(ref.id, name, revision=record.commit, local_dir=folder, endpoint=endpoint())
                record.verified[name] = _verified(folder / name, files[name])
                record.write(folder)
    return folder


def _listing(ref: Ref) -> tuple[dict[str, Any], Record]:
    """The hub's rows of the files that are wanted, those of earlier pulls among them, and a record of what is here."""
    from huggingface_hub import HfApi

    info: Any = HfApi(endpoint=endpoint()).model_info(ref.id, revision=ref.revision, files_metadata=True)
    row, old = RELEASES.get(ref.id, Release(files=ANY)), Record.read(ref.folder)
    patterns = (ref.path, f"{ref.path.rstrip('/')}/*") if ref.path else row.files
    names = [file.rfilename for file in info.siblings]
    needed = {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}
    if not needed:
        what = ref.path or " or ".join(row.files)
        raise InputError(f"{ref.id} at {ref.revision} has no {what}: see {endpoint()}/{ref.id}.")
    needed |= {name for name in names if any(fnmatchcase(name, pattern) for pattern in ABOUT)}
    needed |= set(old.wanted if old else ())
    needed -= {instructions.FILE}  # the name of a file of ours in the same folder
    files = {file.rfilename: file for file in info.siblings if file.rfilename in needed}
    stated = info.card_data.to_dict() if info.card_data else {}
    licence = stated.get("license_name") or stated.get("license") or row.license or "not stated"
    known = {
        name: value
        for name, value in (old.verified if old else {}).items()
        if name in files
        and value == _checksum(files[name])
        and (path := ref.folder / name).is_file()
        and path.stat().st_size == files[name].size
    }
    return files, Record(ref.id, ref.revision, info.sha, licence, sorted(files), known)


def _checksum(file: Any) -> str:
    """What the hub states of a file: SHA-256 of a large one, git's blob id of a small one."""
    return f"sha256:{file.lfs.sha256}" if file.lfs else f"git:{file.blob_id}"


def _verified(path: Path, file: Any) -> str:
    """The checksum of a downloaded file; a damaged one is deleted. huggingface_hub compares sizes only."""
    from huggingface_hub.utils.sha import git_hash, sha_fileobj

    stated = _checksum(file)
    with path.open("rb") as stream:
        found = f"sha256:{sha_fileobj(stream).hex()}" if file.lfs else f"git:{git_hash(stream.read())}"
    if found != stated:
        path.unlink()
        raise InputError(f"{path} arrived damaged ({found}, should be {stated}): run it again.")
    return found


# ---- what can go wrong -----------------------------------------------------------------------------------------


def check_space(folder: Path, needed: int, who: str) -> None:
    """InputError where a disk has too little room. folder: where, or where it will be; who: needs so many bytes."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if needed > (free := shutil.disk_usage(there).free):
        raise InputError(
            f"{who} needs {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free there: "
            "make room, or set OMNIALPHA_HOME to a folder on another disk."
        )


@contextmanager
def _explained(ref: Ref) -> Iterator[None]:
    """What the hub refuses and what the network breaks, in one sentence with the way out."""
    from filelock import Timeout
    from huggingface_hub import errors

    page = f"{endpoint()}/{ref.id}"
    token = "set HF_TOKEN to your token"
    try:
        yield
    except InputError:
        raise
    except Timeout:
        raise InputError(f"{ref.id} is being pulled by another process: wait until it has finished.") from None
    except errors.GatedRepoError:
        raise InputError(f"{ref.id} is gated: accept its licence at {page} and {token}.") from None
    except errors.RepositoryNotFoundError:
        raise InputError(f"{page} does not exist, or is private: check the id, or {token}.") from None
    except errors.RevisionNotFoundError:
        raise InputError(f"{ref.id} has no revision {ref.revision!r}: see {page}/commits/main.") from None
    except (errors.HTTPError, OSError) as error:
        if getattr(error, "errno", None):  # of this disk
            raise
        code = getattr(getattr(error, "response", None), "status_code", None)
        if code in (401, 403):
            raise InputError(f"{page} refuses access ({code}): accept its licence there and {token}.") from None
        reason = f"status {code}" if code else " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"the download of {ref} from {endpoint()} broke off ({reason}): run it again.") from None
    except ValueError as error:  # a name that leaves its folder
        raise InputError(f"{ref} cannot be downloaded: {error}") from None
