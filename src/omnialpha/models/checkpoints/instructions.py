"""The texts that a checkpoint was trained on, one a task: read from a file or a release's public source, and kept
beside the weights. This package holds none of them.
"""

from __future__ import annotations

import ast
import json
import os
import tomllib
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path

from omnialpha.errors import InputError
from omnialpha.files import atomic_write
from omnialpha.models.checkpoints.releases import Release, Texts
from omnialpha.tasks import TASKS
from omnialpha.tasks import task as find_task

FILE = "instructions.json"  # in the folder of a stored model
URL = "OMNIALPHA_INSTRUCTIONS_URL"  # an environment variable: of the source, in the place of the release's own
LIMIT = 1 << 20  # bytes of a source
TIMEOUT = 30.0  # seconds
PROMPT = "{prompt}"


# ---- files -----------------------------------------------------------------------------------------------------


def read(path: str | Path) -> dict[str, str]:
    """Task -> text of a TOML or JSON file; InputError with what is wrong in it."""
    path = Path(path).expanduser()
    toml = path.suffix.lower() == ".toml"
    try:
        text = path.read_text(encoding="utf-8")
        table = tomllib.loads(text) if toml else json.loads(text)
    except OSError as error:
        raise InputError(f"the instructions {path} cannot be read ({error.strerror}): check the path.") from None
    except ValueError as error:  # of both formats, and of bytes that are not UTF-8
        kind = "TOML" if toml else "JSON"
        raise InputError(f"the instructions {path} are not valid {kind} ({error}): write task and text.") from None
    if not isinstance(table, dict):
        raise InputError(f"the instructions {path} hold a {type(table).__name__}: write a table of task and text.")
    return {name: _checked(path, name, text) for name, text in table.items()}


def _checked(path: Path, name: str, text: object) -> str:
    row = find_task(name)
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"the instructions {path} give {name} {text!r}: write a text.")
    if (PROMPT in text) != (row.text is not None):
        fault, fix = ("takes no prompt", "leave it out") if PROMPT in text else ("needs a prompt", "write it in")
        raise InputError(f"the instructions {path} for {name} and {PROMPT} do not agree, as it {fault}: {fix}.")
    return text


def write(folder: Path, texts: Mapping[str, str]) -> None:
    """Put instructions into a model's folder, where `stored` finds them."""
    atomic_write(folder / FILE, json.dumps(texts, indent=2, ensure_ascii=False) + "\n")


def stored(folder: Path) -> dict[str, str]:
    """The instructions stored in a model's folder; {} where there are none."""
    return read(folder / FILE) if (folder / FILE).is_file() else {}


def store(folder: Path, release: Release | None, given: Mapping[str, str] | None, online: bool) -> str:
    """Store the given instructions, or the release's own, in a model's folder. Returns why that cannot be done, or
    "".
    """
    source = release and release.texts
    if given is None and (source is None or (folder / FILE).is_file()):
        return ""
    if not folder.is_dir():
        return f"{folder} is not there for the instructions: give --instructions FILE where the model is run"
    try:
        if given is None and not online:
            raise InputError("the texts that it was trained on are not stored, and the network is forbidden.")
        write(folder, fetch(source) if given is None and source else given or {})
    except InputError as error:
        reason = str(error).rstrip(".")
        return f"{reason}: the model will be asked in our own wording; pull it again, or with --instructions FILE"
    return ""


# ---- a release's source ----------------------------------------------------------------------------------------


def fetch(source: Texts) -> dict[str, str]:
    """Download the instructions in a release's source. Raises InputError where they cannot be had."""
    url = os.environ.get(URL) or source.url
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:  # no token is sent
            raw = response.read(LIMIT + 1)
    except (OSError, HTTPException, ValueError) as error:
        raise InputError(f"{url} cannot be downloaded ({' '.join(str(error).split())}).") from None
    if len(raw) > LIMIT:
        raise InputError(f"{url} cannot be downloaded (it has more than {LIMIT} bytes).")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{url} is not text.") from None
    found = parse(text, source)
    if missing := [name for name in source.names if name not in found]:
        raise InputError(f"{url} has no {source.field} of {', '.join(missing)}.")
    return found


def parse(text: str, source: Texts) -> dict[str, str]:
    """Task -> text, out of Python source that is neither run nor imported. A task with two texts has none.

    A text is a literal: the keyword `source.field` of a call whose keyword `value` is the release's name of a task.
    """
    try:
        calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"the release's source is no Python ({type(error).__name__}).") from None
    tasks = {name: task for task, name in source.names.items()}
    texts: dict[str, set[str]] = {}
    for call in calls:
        literals = {word.arg: word.value.value for word in call.keywords if isinstance(word.value, ast.Constant)}
        task, found = tasks.get(str(literals.get("value"))), literals.get(source.field)
        if task and isinstance(found, str):
            texts.setdefault(task, set()).add(found)
    return {task: _with_prompt(task, *values) for task, values in texts.items() if len(values) == 1}


def _with_prompt(task: str, text: str) -> str:
    """A prompt follows its text, one space behind."""
    return f"{text} {PROMPT}" if TASKS[task].text and PROMPT not in text else text
