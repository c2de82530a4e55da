"""The texts that a checkpoint was trained on, one a task: read from a file or a release's public source, and kept
beside the weights. This package holds none of them.
"""

from __future__ import annotations

import ast
import json
import os
import re
import tomllib
import urllib.request
from collections.abc import Iterator, Mapping
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
    """Store instructions in a model's folder.

    Args:
        folder: of the model.
        release: whose own are fetched where none are given.
        given: task -> text, or None.
        online: whether the network may be used.

    Returns:
        Why that cannot be done, or "".
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
    """Task -> text, out of Python source that is neither run nor imported. InputError where it is no Python.

    A text is a plain string called `source.field`, as a keyword, a dictionary's entry or a name. Its task is told by
    the nearest thing around it that has one of `source.names`: a string beside it, a key, a variable, a class. A name
    that fits nothing, or two texts of one task, give none.
    """
    texts: dict[str, set[str]] = {}
    try:
        for value, around in _fields(ast.parse(text), source.field, ()):
            for level in reversed(around):
                if tasks := {task for task, names in source.names.items() if level & set(map(_plain, names))}:
                    if len(tasks) == 1:
                        texts.setdefault(tasks.pop(), set()).add(value)
                    break
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"the release's source is no Python ({type(error).__name__}).") from None
    return {task: _with_prompt(task, *values) for task, values in texts.items() if len(values) == 1}


Level = frozenset[str]  # plain names at one distance from a text


def _fields(node: ast.AST, field: str, around: tuple[Level, ...]) -> Iterator[tuple[str, tuple[Level, ...]]]:
    """Every string that is called `field`, with what stands around it, the nearest last."""
    for name, value in _named(node).items():
        if name == field and (text := _string(value)):
            yield text, around + (_beside(node),)
    for child, names in _children(node):
        yield from _fields(child, field, around + (_beside(node), names))


def _named(node: ast.AST) -> dict[str, ast.expr]:
    """What a node gives names to: keywords of a call, entries of a dictionary, assignments of a class or function."""
    if isinstance(node, ast.Call):
        return {word.arg: word.value for word in node.keywords if word.arg}
    if isinstance(node, ast.Dict):
        pairs = ((key and _string(key), value) for key, value in zip(node.keys, node.values, strict=True))
        return {name: value for name, value in pairs if name}
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        rows = [row for row in node.body if isinstance(row, ast.Assign | ast.AnnAssign) and row.value]
        return {name: row.value for row in rows for name in _targets(row) if row.value}
    return {}


def _targets(row: ast.AST) -> list[str]:
    """`x = ...`, `x["y"] = ...` and `call(x=...)` -> the names in front."""
    if isinstance(row, ast.keyword):
        return [row.arg or ""]
    nodes = row.targets if isinstance(row, ast.Assign) else [row.target] if isinstance(row, ast.AnnAssign) else []
    parts = [part for node in nodes for part in ([node.slice] if isinstance(node, ast.Subscript) else [node])]
    return [part.id if isinstance(part, ast.Name) else _string(part) or "" for part in parts]


def _beside(node: ast.AST) -> Level:
    """Strings in the same call, dictionary or list, and the name of a class or function."""
    values = list(_named(node).values()) + (node.args if isinstance(node, ast.Call) else [])
    values += node.elts if isinstance(node, ast.List | ast.Tuple) else []
    own = [node.name] if isinstance(node, ast.ClassDef | ast.FunctionDef) else []
    return frozenset(_plain(text) for text in (*own, *filter(None, map(_string, values))))


def _children(node: ast.AST) -> Iterator[tuple[ast.AST, Level]]:
    """Each with the names that it is given here."""
    names = {id(value): name for name, value in _named(node).items()}
    own = _targets(node)
    for child in ast.iter_child_nodes(node):
        given = [names[id(child)]] if id(child) in names else []
        yield child, frozenset(map(_plain, own + given))


def _string(node: ast.AST) -> str | None:
    """Of a literal, or of literals that are added."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _string(node.left), _string(node.right)
        return None if left is None or right is None else left + right
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def _with_prompt(task: str, text: str) -> str:
    """A prompt follows its text, one space behind."""
    return f"{text} {PROMPT}" if TASKS[task].text and PROMPT not in text else text
