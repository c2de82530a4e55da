"""Every mistake a user can make: one sentence with the value and the fix, exit code 2, no traceback, no file left."""

import errno
import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import Result

from omnialpha.cli import run_task
from omnialpha.models.checkpoints.folders import CARD

Call = Callable[..., Result]
OUT = ["-o", "out.png"]
MATTE = ["matte", "photo.png", *OUT]


def listing() -> list[tuple[str, int]]:
    """Everything below the current folder, with sizes."""
    return sorted((str(path), path.stat().st_size) for path in Path().rglob("*") if path.is_file() or path.is_dir())


def refused(result: Result, *words: str) -> str:
    """The one sentence; `words` are the value and the fix that must be in it."""
    assert result.exit_code == 2, (result.exit_code, result.stdout, result.stderr)
    assert result.stdout == "" and "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert result.stderr.count("error: ") == 1 and last.startswith("error: ") and last[-1] in ".?", result.stderr
    assert not [word for word in words if word not in last], last
    return last


@pytest.fixture
def pictures(folder: Path) -> Path:
    """The folder with pictures that no one can use beside those that one can."""
    photo = Path("photo.png").read_bytes()
    Path("truncated.png").write_bytes(photo[: len(photo) // 2])
    Image.open("photo.png").save("whole.jpg", quality=95)
    Path("truncated.jpg").write_bytes(Path("whole.jpg").read_bytes()[:600])
    Path("text.png").write_text("this is no picture\n")
    Path("empty.png").write_bytes(b"")
    Path("folder.png").mkdir()
    Path("bomb.png").write_bytes(png_header(40_000, 40_000))
    Path("flat.png").write_bytes(png_header(0, 16))
    Image.new("L", (20, 12), 255).save("small.png")
    Image.new("L", (40, 24), 0).save("black.png")
    Image.new("L", (40, 24), 128).save("grey.png")
    os.link("photo.png", "link.png")
    os.symlink("photo.png", "alias.png")
    Path("kept").mkdir()
    Path("kept/notes.txt").write_text("precious")
    Path("stack").mkdir()
    return folder


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is and ends."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0")),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


LONG = "a" * 10_000
EARLY: dict[str, tuple[list[str], tuple[str, ...]]] = {
    # pictures
    "missing file": (["matte", "nowhere.png", *OUT], ("no file nowhere.png", "check the path")),
    "folder as a file": (["matte", "folder.png", *OUT], ("folder.png is a folder", "name one picture")),
    "not a picture": (["matte", "text.png", *OUT], ("text.png is not a picture", "save it as PNG")),
    "truncated PNG": (["matte", "truncated.png", *OUT], ("truncated.png is damaged or cut off", "copy it again")),
    "truncated JPEG": (["matte", "truncated.jpg", *OUT], ("truncated.jpg is damaged or cut off", "copy it again")),
    "zero bytes": (["matte", "empty.png", *OUT], ("empty.png is empty (0 bytes)", "copy it again")),
    "zero pixels": (["matte", "flat.png", *OUT], ("flat.png", "save it as PNG")),
    "decompression bomb": (["matte", "bomb.png", *OUT], ("bomb.png has more than 89,478,485 pixels", "smaller")),
    "bad mask file": ([*MATTE, "--precise", "text.png"], ("text.png is not a picture",)),
    "mask of another size": ([*MATTE, "--precise", "small.png"], ("the precise is 20x12 px", "40x24 px", "same size")),
    "empty mask": (["remove", "photo.png", *OUT, "--rough", "black.png"], ("the rough is empty", "white")),
    "unknown trimap": ([*MATTE, "--trimap", "grey.png"], ("unknown (grey) everywhere", "mark some sure subject")),
    "two guides": ([*MATTE, "--trimap", "trimap.png", "--alpha", "mask.png"], ("alpha, trimap", "give one")),
    "guide and text": ([*MATTE, "--trimap", "trimap.png", "--text", "mug"], ("trimap, text", "give one")),
    "two of one role": ([*MATTE, *["--alpha", "mask.png"] * 2], ("2 pictures as alpha", "at most 1")),
    "no picture": (["matte", *OUT], ("IMAGE", "see `omnialpha matte --help`")),
    "two pictures": (["matte", "photo.png", "mask.png", *OUT], ("mask.png", "see `omnialpha matte --help`")),
    "nothing to complete": (["complete", "--prompt", "sea", *OUT], ("foreground or a background", "exactly one")),
    "both to complete": (
        ["complete", "--prompt", "sea", *OUT, "--foreground", "cutout.png", "--background", "photo.png"],
        ("foreground or a background", "exactly one"),
    ),
    # texts
    "no prompt": (["complete", "--foreground", "cutout.png", *OUT], ("--prompt", "see `omnialpha complete --help`")),
    "blank prompt": (["generate", "  ", *OUT], ("text_to_image needs a text", "give a prompt")),
    "blank text": ([*MATTE, "--text", " "], ("--text is empty", "leave it out")),
    "long prompt": (["generate", LONG, *OUT], ("10000 characters", "limit is 2000", "shorten")),
    "long text": ([*MATTE, "--text", LONG], ("10000 characters", "limit is 2000", "shorten")),
    "undecodable prompt": (["generate", "caf\udce9", *OUT], ("not valid text", "\\udce9")),
    "prompt where none goes": (
        ["run", "matting_auto", "--composite", "photo.png", "--prompt", "mug", *OUT],
        ("matting_auto takes no text", "'mug'", "leave the prompt out"),
    ),
    # tasks, roles, options
    "unknown command": (["mate", "photo.png", *OUT], ("'mate'", "Did you mean 'matte'")),
    "unknown task": (["run", "mating_auto", "--composite", "photo.png", *OUT], ("'mating_auto'", "'matting_auto'")),
    "role of no task": (["run", "matting_auto", "--picture", "photo.png", *OUT], ("--picture", "--help")),
    "role of another task": (
        ["run", "matting_auto", "--composite", "photo.png", "--trimap", "trimap.png", *OUT],
        ("matting_auto has no input 'trimap'", "takes composite"),
    ),
    "role missing": (["run", "matting_auto", *OUT], ("matting_auto needs a composite", "give composite=")),
    "unknown option": ([*MATTE, "--trimp", "trimap.png"], ("--trimp", "--trimap")),
    "option without value": (["matte", "photo.png", "-o"], ("'-o'", "see `omnialpha --help`")),
    "seed below": ([*MATTE, "--seed", "-1"], ("seed=-1", "use 0 to")),
    "seed above": ([*MATTE, "--seed", str(2**64)], (f"seed={2**64}", "use 0 to")),
    "seed no number": ([*MATTE, "--seed", "x"], ("'x'", "--seed")),
    "no steps": ([*MATTE, "--steps", "0"], ("steps=0 is out of range", "use 1 to 1000")),
    "many steps": ([*MATTE, "--steps", "1001"], ("steps=1001 is out of range", "use 1 to 1000")),
    "half a step": ([*MATTE, "--steps", "1.5"], ("'1.5'", "--steps")),
    "guidance below": ([*MATTE, "--guidance", "-1"], ("guidance=-1 is out of range", "use 0 to 30")),
    "guidance above": ([*MATTE, "--guidance", "30.5"], ("guidance=30.5 is out of range", "use 0 to 30")),
    "guidance in words": ([*MATTE, "--guidance", "low"], ("'low' is not a number", "--guidance")),
    "layers in words": (["decompose", "photo.png", "-o", "new", "--layers", "all"], ("'all'", "--layers")),
    "guidance NaN": ([*MATTE, "--guidance", "nan"], ("guidance=nan is out of range", "use 0 to 30")),
    "size zero": (["generate", "mug", *OUT, "--size", "0x9"], ("--size 0x9 is out of range", "1 to 16384")),
    "size above": (["generate", "mug", *OUT, "--size", "16385"], ("--size 16385 is out of range", "1 to 16384")),
    "size in pixels above": (["generate", "mug", *OUT, "--size", "16384"], ("--size 16384 is out of range", "pixels")),
    "size in words": (["generate", "mug", *OUT, "--size", "big"], ("--size 'big' is not a size", "WIDTHxHEIGHT")),
    "size negative": (["generate", "mug", *OUT, "--size", "-5"], ("--size '-5' is not a size", "WIDTHxHEIGHT")),
    "size of a photo": ([*MATTE, "--size", "64"], ("--size 64", "has the size of the composite", "leave it out")),
    "one layer": (["decompose", "photo.png", "-o", "new", "--layers", "1"], ("layers=1 is out of range", "use 2 to 8")),
    "nine layers": (
        ["decompose", "photo.png", "-o", "new", "--layers", "9"],
        ("layers=9 is out of range", "use 2 to 8"),
    ),
    "layers of one": (
        ["run", "matting_auto", "--composite", "photo.png", "--layers", "2", *OUT],
        ("matting_auto makes 1 layer", "not 2"),
    ),
    # outputs
    "no output": (["matte", "photo.png"], ("-o", "see `omnialpha matte --help`")),
    "output folder missing": (["matte", "photo.png", "-o", "no/out.png"], ("folder no does not exist", "create it")),
    "output is a folder": (["matte", "photo.png", "-o", "kept"], ("kept is a folder", "add a file name")),
    "unknown format": (["matte", "photo.png", "-o", "out.bmp"], ("out.bmp has no known format", ".png")),
    "no format": (["matte", "photo.png", "-o", "out"], ("out has no known format", ".png")),
    "name too long": (["matte", "photo.png", "-o", "a" * 300 + ".png"], ("aaa.png", "name too long", "another path")),
    "format without alpha": (
        ["matte", "photo.png", "-o", "out.jpg"],
        ("out.jpg cannot hold transparency", "use .png, or matte it with --background COLOUR"),
    ),
    "background of no colour": ([*MATTE, "--background", "whit"], ("--background 'whit' is no colour", "write white")),
    "background see-through": ([*MATTE, "--background", "#1234"], ("--background '#1234' is no colour", "#rrggbb")),
    "background not a picture": ([*MATTE, "--background", "text.png"], ("text.png is not a picture", "save it as PNG")),
    "background is the output": (
        ["matte", "photo.png", "-o", "mask.png", "--background", "mask.png"],
        ("mask.png is also an input", "another name"),
    ),
    "alpha kept by a removal": (
        ["remove", "cutout.png", "--rough", "mask.png", "-o", "out.jpg"],
        ("out.jpg cannot hold transparency", ".png"),
    ),
    "output is the input": (["matte", "photo.png", "-o", "photo.png"], ("photo.png is also an input", "another name")),
    "output is a mask": ([*MATTE[:2], "--alpha", "mask.png", "-o", "./mask.png"], ("mask.png is also an input",)),
    "output is a hard link": (["matte", "photo.png", "-o", "link.png"], ("link.png is also an input", "another name")),
    "output is a symlink": (["matte", "photo.png", "-o", "alias.png"], ("alias.png is also an input", "another name")),
    "layers into a file": (["decompose", "photo.png", "-o", "text.png"], ("text.png is a file", "choose a folder")),
    "layers into a picture": (
        ["decompose", "photo.png", "-o", "out.png"],
        ("out.png cannot hold layers", ".psd"),
    ),
    "layers into a PSD nowhere": (
        ["decompose", "photo.png", "-o", "no/out.PSD"],
        ("no does not exist", "create it first"),
    ),
    "layers nowhere": (["decompose", "photo.png", "-o", "no/new"], ("no does not exist", "create it first")),
    "layers among files": (["decompose", "photo.png", "-o", "kept"], ("kept is not empty", "choose another")),
    # recipes
    "recipe missing": (["train", "nowhere.toml"], ("recipe nowhere.toml does not exist", "see recipes/")),
    "recipe not TOML": (["train", "text.png"], ("text.png is not valid TOML",)),
    "recipe of no kind": (["train", "empty.png"], ("kind=None", "use one of vae, sft")),
    "override without value": (["train", "empty.png", "steps"], ("'steps' has no '='", "write section.key=value")),
    "override of a value": (["train", "empty.png", "a=1", "a.b=2"], ("'a.b=2'", "not a table")),
    "override unknown": (["train", "empty.png", "kind='vae'", "fitt.steps=1"], ("unknown key 'fitt'", "'fit'")),
}


@pytest.mark.parametrize(("arguments", "words"), EARLY.values(), ids=EARLY)
def test_refused_before_the_model_is_loaded(
    arguments: list[str], words: tuple[str, ...], pictures: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_task, "load", lambda *_: pytest.fail("the model was loaded"))
    before = listing()
    assert refused(call(*arguments), *words) and listing() == before


def test_unreadable_file(pictures: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == "photo.png":  # the permission bits do not stop root, who may be running this
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    refused(call(*MATTE), "photo.png may not be read", "permissions")


@pytest.mark.parametrize("verb", [MATTE, ["decompose", "photo.png", "-o", "new"]], ids=["file", "folder"])
def test_unwritable_output(verb: list[str], pictures: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    before = listing()
    monkeypatch.setattr(run_task, "load", lambda *_: pytest.fail("the model was loaded"))
    monkeypatch.setattr(os, "access", lambda path, mode, **options: not mode & os.W_OK)
    refused(call(*verb), verb[-1], "may not be written", "change the permissions or choose another")
    assert listing() == before


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write to")
def test_output_that_turns_out_unwritable(pictures: Path, ask: Call) -> None:
    before = listing()
    refused(ask("matte", "photo.png", "-o", "/proc/out.png"), "/proc/out.png", "written", "choose another folder")
    assert listing() == before


@pytest.mark.parametrize(
    ("verb", "named"), [(MATTE, "out.png"), (["decompose", "photo.png", "-o", "stack"], "stack/00-background.png")]
)
def test_disk_full(verb: list[str], named: str, pictures: Path, ask: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    before = listing()

    def full(descriptor: int) -> None:
        assert os.fstat(descriptor).st_size > 0  # the bytes were there, under a temporary name
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    refused(ask(*verb), f"{named} could not be written (No space left on device)", "free space or choose another")
    assert listing() == before


def test_layers_over_their_own_input(pictures: Path, call: Call, ask: Call) -> None:
    assert ask("decompose", "photo.png", "-o", "stack").exit_code == 0
    before = listing()
    verb = ["decompose", "stack/00-background.png", "-o", "stack"]
    refused(call(*verb), "stack/00-background.png lies in the output folder stack", "choose another")
    assert listing() == before


# ---- models and devices ----------------------------------------


def test_unknown_model(pictures: Path, call: Call) -> None:
    refused(call(*MATTE, "--model", "nanoo"), "model 'nanoo' is neither bundled (nano) nor a folder", "check the path")
    assert not Path("out.png").exists()


@pytest.mark.parametrize("device", ["gpu", "cpu:x", "cuda:99", "meta", ""])
def test_unknown_device(device: str, pictures: Path, ask: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from omnialpha.pipeline import OmniAlpha

    monkeypatch.setattr(OmniAlpha, "from_parts", lambda *arguments: pytest.fail("the weights were read"))
    fix = "there are" if device.startswith("cuda") and torch.cuda.is_available() else "use one of auto"
    refused(ask(*MATTE, "--device", device), f"device {device!r}", fix)
    assert not Path("out.png").exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


DAMAGE: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "no card": (lambda model: (model / CARD).unlink(), ("model has no omnialpha.json",)),
    "card not JSON": (lambda model: cut(model / CARD), ("omnialpha.json is not valid JSON", "again")),
    "card with another key": (lambda model: (model / CARD).write_text('{"nme": "x"}'), ("unknown key 'nme'", "'name'")),
    "part missing": (lambda model: shutil.rmtree(model / "vae"), ("model lacks vae/", "download")),
    "weights missing": (
        lambda model: next((model / "transformer").glob("*.safetensors")).unlink(),
        ("model/transformer has neither", "again"),
    ),
    "weights cut off": (
        lambda model: cut(next((model / "transformer").glob("*.safetensors"))),
        ("model/transformer/diffusion_pytorch_model.safetensors (100 bytes)", "again"),
    ),
    "VAE cut off": (
        lambda model: cut(next((model / "vae").glob("*.safetensors"))),
        ("model/vae/diffusion_pytorch_model.safetensors (100 bytes)", "again"),
    ),
    "text weights cut off": (
        lambda model: cut(next((model / "text_encoder").glob("*.safetensors"))),
        ("model/text_encoder/model.safetensors (100 bytes)", "again"),
    ),
    "config not JSON": (
        lambda model: cut(model / "transformer" / "config.json"),
        ("transformer/config.json is not valid JSON", "again"),
    ),
    "tokenizer empty": (
        lambda model: [path.unlink() for path in (model / "tokenizer").iterdir()],
        ("model/tokenizer holds no tokenizer.json", "again"),
    ),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_model(
    damage: Callable[[Path], Any], words: tuple[str, ...], pictures: Path, call: Call, tiny_model_folder: Path
) -> None:
    shutil.copytree(tiny_model_folder, "model")
    damage(Path("model"))
    refused(call(*MATTE, "--model", "model"), *words)
    assert not Path("out.png").exists()


def test_a_device_without_memory(pictures: Path, ask: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from omnialpha.pipeline import OmniAlpha

    def run(*arguments: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(OmniAlpha, "run", run)
    refused(ask(*MATTE), "cpu has too little memory for matting_auto", "make the picture smaller")
    assert not Path("out.png").exists()


def test_a_prompt_that_would_break_the_template(pictures: Path, ask: Call) -> None:
    refused(ask("generate", "a <|im_end|> mug", *OUT), "reserved marker <|im_end|>", "remove it")
    assert not Path("out.png").exists()


def test_a_real_process_shows_no_traceback(pictures: Path) -> None:
    before = listing()
    for arguments in (["matte", "text.png", *OUT], ["matte", "photo.png"]):
        command = [sys.executable, "-m", "omnialpha.cli.main", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert listing() == before


def test_what_is_not_the_user_s_mistake_is_not_hidden(
    pictures: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(run_task, "load", bug)
    with pytest.raises(RuntimeError, match="a bug"):
        call(*MATTE, "--raw")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["matte", "photo.png", "-o", "-", "--json"], ["-o -", "--json", "give a file"]),
        (["decompose", "photo.png", "-o", "-"], ["-o -", "2 layers", "name a folder"]),
        (["matte", "photo.png", *OUT, "--frame", 1], ["photo.png", "no frame 1", "leave the frame out"]),
        (["generate", "a mug", *OUT, "--frame", 0], ["--frame 0", "takes no picture"]),
        (["matte", "-", *OUT], ["is empty (0 bytes)"]),
    ],
)
def test_pipes_and_frames_that_cannot_be(arguments: list[object], words: list[str], pictures: Path, ask: Call) -> None:
    before = listing()
    refused(ask(*arguments), *words)
    assert listing() == before
