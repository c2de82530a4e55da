"""Every command and Python block in README.md and docs/*.md runs, or says what it needs and is well formed.

Blocks name their language. `(needs X)` in a comment keeps its line from running here; on a line of its own, all that
follow up to an empty line. X is one of `NEEDS`. All options of our commands are parsed by the command line itself, keys
of recipes by the recipes.
"""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, chdir
from dataclasses import dataclass
from functools import cache
from glob import glob
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw, ImageFilter

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(.*)\n((?:.*\n)*?)```$", re.M)
LANGUAGES = {"bash", "python", "toml", "json", "text"}
NEEDS = {
    "the released weights", "a download", "a data set", "a judge", "two annotators", "another run", "minutes",
    "hours", "several processes", "ffmpeg", "Docker", "Ctrl-C to end",
}  # fmt: skip
SLOW = {"gallery.md", "server.md", "batch.md", "layers.md"}
SERVER = "http://127.0.0.1:7000"  # is that of a test where a page names it


@dataclass(frozen=True)
class Line:
    """A line of a shell block, continued lines joined, and what it needs ("" for nothing)."""

    text: str
    needs: str

    @property
    def words(self) -> list[str]:
        """Without the comment; patterns stand for the files that there are."""
        words = shlex.split(self.text, comments=True)
        return [file for word in words for file in (sorted(glob(word)) if "*" in word else [word])]


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of the fenced blocks."""
    return FENCE.findall(page.read_text(encoding="utf-8"))


def need(text: str) -> str:
    found = re.search(r"#.*\(needs ([^)]+)\)", text)
    return found[1] if found else ""


def lines(block: str) -> Iterator[Line]:
    """The commands of a shell block."""
    kept = ""
    for text in re.sub(r"(\\|\|)\n\s*", r"\1 ", block).replace("\\ ", "").splitlines():
        if not text.strip():
            kept = ""
        elif text.startswith("#"):
            kept = need(text) or kept
        else:
            yield Line(text, need(text) or kept)


COMMANDS = [
    (page, line) for page in PAGES for language, text in blocks(page) if language == "bash" for line in lines(text)
]


def test_every_block_names_its_language_and_every_reason_is_known() -> None:
    assert not {(page.name, language) for page in PAGES for language, _ in blocks(page) if language not in LANGUAGES}
    needs = {line.needs for _, line in COMMANDS if line.needs}
    needs |= {need(text) for page in PAGES for language, text in blocks(page) if language == "python"} - {""}
    assert needs == NEEDS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_well_formed(page: Path) -> None:
    for line in (line for at, line in COMMANDS if at == page):
        for part in line.text.split(" | "):
            well_formed(part)


@cache
def omnialpha() -> Any:
    """The command line; it takes a second to build."""
    from typer.main import get_command

    from omnialpha.cli.main import app

    return get_command(app)


def well_formed(text: str) -> None:
    """Programs of ours get arguments that they know. Fails with theirs otherwise."""
    from omnialpha.training.run import read

    program, *words = shlex.split(text, comments=True)
    recipe = [ROOT / word for word in words if word.startswith("recipes/")]
    if program == "omnialpha":
        command = omnialpha()
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        made = command.make_context(text, list(words))
        if command.name == "train" and recipe:
            read(recipe[0], made.params["overrides"] or [])
    elif program == "python":
        source = (ROOT / words[0]).read_text(encoding="utf-8")
        assert not [word for word in words[1:] if word.startswith("--") and f'"{word}"' not in source]
    elif program == "make":
        assert f"\n{words[0]}:" in (ROOT / "Makefile").read_text(encoding="utf-8")
    elif program == "torchrun":
        read(recipe[0], words[words.index(str(recipe[0].relative_to(ROOT))) + 1 :])
    else:
        assert program in ("pip", "curl", "ffmpeg", "docker", "accelerate"), f"nothing checks {program}"


def workspace(folder: Path) -> None:
    """The files that pages name: a photograph, its maps and layers, a folder, a list, a file of layers, a manifest."""
    from layered import manifest
    from omnialpha.io.conversion import to_rgba
    from omnialpha.io.layer_writing import write_layers
    from omnialpha.io.layers import Layer, LayerStack

    size = (112, 80)
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).ellipse((30, 16, 82, 70), fill=255)
    soft, ground = mask.filter(ImageFilter.GaussianBlur(1)), Image.linear_gradient("L").resize(size).convert("RGB")
    mug, trimap = Image.new("RGBA", size, "#c03020"), mask.filter(ImageFilter.GaussianBlur(3))
    mug.putalpha(soft)
    photo = Image.composite(mug.convert("RGB"), ground, soft)
    names = {"photo.jpg": photo, "mask.png": mask, "trimap.png": trimap.point(lambda v: 128 if 8 < v < 248 else v)}
    names |= dict.fromkeys(("fg.png", "cup.png", "tree.png"), mug) | dict.fromkeys(("bg.png", "back.png"), ground)
    for part in ("photos/2024", "masks/2024", "photos/2025", "masks/2025"):
        (folder / part).mkdir(parents=True)
        names[f"{part}/a.png"] = mask if part.startswith("masks") else photo
    for name, picture in names.items():
        picture.save(folder / name)
    (folder / "list.txt").write_text("photo.jpg\n")
    layers = [Layer("back", to_rgba(ground)), Layer("mug", to_rgba(mug))]
    write_layers(folder / "painting.psd", LayerStack(size[::-1], layers))
    manifest(folder, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all pages are run, so that what several of them show is run once."""
    for extra in ("psd_tools", "OpenEXR", "fastapi", "multipart", "openai"):
        pytest.importorskip(extra)
    folder = tmp_path_factory.mktemp("examples")
    workspace(folder)
    return folder


DONE: set[tuple[str, ...]] = set()  # commands
KNOWN: dict[tuple[str, ...], dict[str, Any]] = {}  # names that a page's Python blocks have left


@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=[pytest.mark.slow] if p.name in SLOW else [], id=p.name) for p in PAGES]
)
def test_what_needs_nothing_runs(page: Path, folder: Path) -> None:
    if page.name in SLOW:
        from omnialpha.demo.gallery import write_inputs

        write_inputs(folder)
    with ExitStack() as stack:
        serves = any(SERVER in block for _, block in blocks(page))
        address = stack.enter_context(nano_server())[0] if serves else SERVER
        stack.enter_context(chdir(folder))
        code: tuple[str, ...] = ()
        for language, block in blocks(page):
            block = block.replace(SERVER, address)
            if language == "python" and not need(block):
                names = dict(KNOWN.get(code, {}))
                code += (block,)
                if code not in KNOWN:
                    exec(compile(block, page.name, "exec"), names)
                    KNOWN[code] = names
            for line in lines(block) if language == "bash" else ():
                if not line.needs and tuple(line.words) not in DONE:
                    DONE.add(tuple(line.words))
                    run(line)


def nano_server() -> Any:
    from omnialpha.loading import load
    from omnialpha.models.checkpoints.folders import resolve
    from omnialpha.server.engine import ModelEngine
    from served import listening

    return listening(ModelEngine(resolve(None), load))


def run(line: Line) -> None:
    """A command of ours in this process, which need not start anew; `curl` as it is, where there is one."""
    if line.words[0] == "curl":
        if shutil.which("curl"):
            subprocess.run(["curl", "--fail", "-s", *line.words[1:]], check=True, env=os.environ | {"NO_PROXY": "*"})
        return
    assert line.words[0] == "omnialpha", f"not run here, and no reason given: {line.text}"
    with pytest.raises(SystemExit) as done:
        omnialpha().main(line.words[1:])
    assert not done.value.code, line.text
