"""Every command does what it says, says it where it should, and takes its options from the table of tasks."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms
from typer.main import get_command
from typer.testing import Result

import omnialpha
from omnialpha.cli import doctor, main, options
from omnialpha.cli.progress import duration
from omnialpha.errors import InputError
from omnialpha.io import read_image, read_settings
from omnialpha.io.layers import LayerStack
from omnialpha.tasks import DERIVED, MAPS, TASKS, Role, Task

Call = Callable[..., Result]
SIZE = (24, 40)  # of the pictures in `folder`
VERBS = ("run", "matte", "remove", "decompose", "complete", "generate")
FILES = {Role.COMPOSITE: "photo.png", Role.BACKGROUND: "photo.png", Role.FOREGROUND: "cutout.png"} | {
    role: "trimap.png" if role is Role.TRIMAP else "mask.png" for role in MAPS
}


def report(result: Result) -> dict[str, Any]:
    """The one JSON object on standard output of a command that went well."""
    assert result.exit_code == 0, result.stderr
    made = json.loads(result.stdout)
    assert isinstance(made, dict)
    return made


def subprocess_run(*arguments: object, **options: Any) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "omnialpha.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


# ---- what is made ----------------------------------------


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_task_runs_by_its_name(task: Task, folder: Path, ask: Call) -> None:
    pictures = [part for role in task.inputs for part in (f"--{role}", FILES[role])]
    text = ["--prompt", "a red mug"] if task.text else []
    size = [] if task.inputs else ["--size", "40x24"]
    output = "layers" if len(task.targets) > 1 else "out.png"
    made = report(ask("run", task.name, *pictures, *text, *size, "-o", output, "--json"))
    assert (made["task"], made["output"], made["size"]) == (task.name, output, "40x24")
    assert [layer["role"] for layer in made["layers"]] == list(task.targets)
    if len(task.targets) > 1:
        stack = LayerStack.load(output)
        assert stack.size == SIZE and [layer.role for layer in stack] == list(task.targets)
    else:
        picture = read_image(output)
        assert tuple(picture.rgba.shape[-2:]) == SIZE
        assert bool((picture.rgba[3] < 1).any()) == (task.targets[0] is Role.FOREGROUND)


@pytest.mark.parametrize(
    ("arguments", "task"),
    [
        (["matte", "photo.png"], "matting_auto"),
        (["matte", "photo.png", "--trimap", "trimap.png"], "matting_trimap"),
        (["matte", "photo.png", "--text", "the red mug"], "matting_text"),
        (["remove", "photo.png"], "removal_auto"),
        (["remove", "photo.png", "--precise", "mask.png"], "removal_precise"),
        (["complete", "--foreground", "cutout.png", "--prompt", "on a beach"], "foreground_to_full"),
        (["complete", "--foreground", "cutout.png", "--prompt", "a beach", "--layer"], "foreground_to_background"),
        (["complete", "--background", "photo.png", "--prompt", "with a dog"], "background_to_full"),
        (["complete", "--background", "photo.png", "--prompt", "a dog", "--layer"], "background_to_foreground"),
        (["generate", "a glass of water"], "text_to_image"),
    ],
)
def test_a_verb_takes_its_task_from_what_is_given(arguments: list[str], task: str, folder: Path, ask: Call) -> None:
    made = report(ask(*arguments, "-o", "out.png", "--seed", 7, "--json"))
    assert made["task"] == task and made["seed"] == 7 and made["device"] == "cpu" and made["model"] == "tiny"
    stored = read_settings("out.png")
    assert stored and stored.items() <= made.items()
    assert stored.keys() >= {"task", "instruction", "model", "seed", "steps", "guidance", "size", "version"}
    assert stored["version"] == omnialpha.__version__ and made["seconds"] >= made["load_seconds"] >= 0


def test_matte_keeps_what_the_trimap_knows(folder: Path, ask: Call) -> None:
    assert ask("matte", "photo.png", "--trimap", "trimap.png", "-o", "out.png").exit_code == 0
    alpha, known = read_image("out.png").rgba[3], read_image("trimap.png").rgba[0]
    assert bool((alpha[known == 1] == 1).all()) and bool((alpha[known == 0] == 0).all())
    assert ask("matte", "photo.png", "--trimap", "trimap.png", "-o", "raw.png", "--raw").exit_code == 0
    assert not bool((read_image("raw.png").rgba[3][known == 0] == 0).all())


def test_the_command_line_is_the_library(folder: Path, ask: Call, tiny_model: Any) -> None:
    assert ask("matte", "photo.png", "-o", "out.png", "--seed", 3, "--steps", 4, "--guidance", 2).exit_code == 0
    expected = np.asarray(tiny_model.matte("photo.png", seed=3, steps=4, guidance=2.0))
    assert np.array_equal(np.asarray(Image.open("out.png")), expected)


def test_the_seed_decides(folder: Path, ask: Call) -> None:
    for name, seed in (("a.png", 1), ("b.png", 1), ("c.png", 2)):
        assert ask("generate", "a mug", "-o", name, "--seed", seed).exit_code == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes() != Path("c.png").read_bytes()


@pytest.mark.parametrize(
    ("size", "made"), [([], (32, 32)), (["--size", "24"], (24, 24)), (["--size", "50X20"], (20, 50))]
)
def test_generate_takes_a_size(size: list[str], made: tuple[int, int], folder: Path, ask: Call) -> None:
    assert report(ask("generate", "a mug", "-o", "out.png", "--json", *size))["size"] == f"{made[1]}x{made[0]}"
    assert tuple(read_image("out.png").rgba.shape[-2:]) == made


def test_decompose_makes_as_many_layers_as_asked_and_replaces_its_own(folder: Path, ask: Call) -> None:
    for count in (2, 3):
        extra = ["--layers", count] if count > 2 else []
        made = report(ask("decompose", "photo.png", "-o", "layers", "--json", *extra))
        stack = LayerStack.load("layers")
        assert len(stack) == count and [layer.role for layer in stack] == ["background"] + ["foreground"] * (count - 1)
        assert sorted(p.name for p in Path("layers").iterdir()) == sorted(
            [*(r["file"] for r in made["layers"]), "layers.json"]
        )
        assert made["recomposition"]["psnr"] == pytest.approx(
            stack.error(read_image("photo.png").rgba)["psnr"], abs=0.1
        )


def test_several_foregrounds_go_in(folder: Path, ask: Call) -> None:
    twice = ["--foreground", "cutout.png"] * 2
    assert (
        report(ask("complete", *twice, "--prompt", "a beach", "-o", "out.jpg", "--json"))["task"]
        == "foreground_to_full"
    )
    assert Image.open("out.jpg").size == SIZE[::-1]


def test_depth_profile_and_resolution_of_the_input_are_kept(folder: Path, ask: Call) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    deep = np.random.default_rng(1).integers(0, 65536, (*SIZE, 3), dtype=np.uint16)
    resolution: dict[str, Any] = {"resolution": (300, 300), "resolutionunit": "INCH"}
    tifffile.imwrite("deep.tif", deep, photometric="rgb", iccprofile=profile, **resolution)
    assert ask("matte", "deep.tif", "--alpha", "mask.png", "-o", "out.tif").exit_code == 0
    made = read_image("out.tif")
    assert (made.bits, made.icc) == (16, profile) and made.dpi == pytest.approx((300, 300))
    solid = made.rgba[3] == 1  # there the colour is the input's, in all its bits
    assert bool(solid.any()) and np.array_equal(tifffile.imread("out.tif")[solid.numpy()][:, :3], deep[solid.numpy()])
    made = report(ask("decompose", "deep.tif", "-o", "layers", "--seed", 5, "--json"))
    layers = [read_image(path) for path in sorted(Path("layers").glob("*.png"))]
    assert [(layer.bits, layer.icc) for layer in layers] == [(16, profile)] * 2
    assert [layer.dpi for layer in layers] == [pytest.approx((300, 300), abs=0.01)] * 2
    stored = json.loads(Path("layers/layers.json").read_text())["settings"]
    assert stored.items() <= made.items() and (stored["task"], stored["seed"]) == ("decompose_auto", 5)
    assert [read_settings(path) for path in sorted(Path("layers").glob("*.png"))] == [stored] * 2
    shallow = ask("matte", "deep.tif", "-o", "out.webp")
    assert shallow.exit_code == 0 and "WEBP holds 8 bits a channel: the 16 of deep.tif are rounded" in shallow.stderr


@pytest.mark.parametrize(
    ("background", "colour"), [("white", (255, 255, 255)), ("#369", (51, 102, 153)), ("#336699", (51, 102, 153))]
)
@pytest.mark.parametrize("output", ["out.jpg", "out.png"])
def test_a_cut_out_is_put_on_a_colour(
    background: str, colour: tuple[int, ...], output: str, folder: Path, ask: Call
) -> None:
    made = report(ask("matte", "photo.png", "--alpha", "mask.png", "-o", output, "--background", background, "--json"))
    assert made["background"] == background
    pixels = np.asarray(Image.open(output).convert("RGBA")).astype(int)
    mask, photo = np.asarray(Image.open("mask.png")), np.asarray(Image.open("photo.png"))
    assert pixels[..., 3].min() == 255
    if output == "out.png":
        assert np.array_equal(pixels[mask == 0][:, :3], np.broadcast_to(colour, pixels[mask == 0][:, :3].shape))
        assert np.array_equal(pixels[mask == 255][:, :3], photo[mask == 255])
        assert read_settings(output)["background"] == background  # type: ignore[index]
    else:
        corner = pixels[:4, :4, :3].reshape(-1, 3)
        assert np.abs(corner - colour).max() <= 3


def test_a_cut_out_is_put_on_a_picture(folder: Path, ask: Call) -> None:
    """Of 40 x 24 px are covered by 160 x 48: its middle 80 x 48, halved, whose left half is red, right half blue."""
    wide = np.zeros((48, 160, 3), np.uint8)
    wide[:, :40], wide[:, 40:80], wide[:, 80:120] = (0, 255, 0), (255, 0, 0), (0, 0, 255)
    Image.fromarray(wide).save("wide.png")
    assert ask("matte", "photo.png", "--alpha", "mask.png", "-o", "out.png", "--background", "wide.png").exit_code == 0
    pixels, outside = np.asarray(Image.open("out.png")), np.asarray(Image.open("mask.png")) == 0
    inner = np.zeros_like(outside)
    inner[:, 4:16] = True  # away from the seams, where resizing mixes
    assert (pixels[outside & inner] == (255, 0, 0, 255)).all()
    assert (pixels[outside & inner[:, ::-1]] == (0, 0, 255, 255)).all()


def test_a_pipe_in_and_a_pipe_out_is_the_file(folder: Path, ask: Call) -> None:
    assert ask("matte", "photo.png", "-o", "out.png", "--trimap", "trimap.png").exit_code == 0
    done = ask("matte", "-", "--trimap", "trimap.png", "-o", "-", stdin=Path("photo.png").read_bytes())
    assert done.exit_code == 0 and "wrote - (40x24)" in done.stderr
    assert done.stdout_bytes == Path("out.png").read_bytes(), "nothing else on standard output"
    os.mkfifo("pipe")
    writer = threading.Thread(target=lambda: Path("pipe").write_bytes(Path("trimap.png").read_bytes()), daemon=True)
    writer.start()
    assert ask("matte", "photo.png", "--trimap", "pipe", "-o", "piped.png").exit_code == 0
    assert Path("piped.png").read_bytes() == Path("out.png").read_bytes()


def test_a_frame_of_the_picture_is_taken(folder: Path, ask: Call) -> None:
    frames = [Image.new("RGB", SIZE[::-1], (90 * i, 0, 90)) for i in range(3)]
    frames[0].save("moving.png", save_all=True, append_images=frames[1:])
    made = report(ask("remove", "moving.png", "--rough", "mask.png", "--frame", 2, "-o", "out.png", "--json"))
    assert made["notes"] == [] and np.asarray(Image.open("out.png"))[0, 0].tolist() == [180, 0, 90, 255]


def test_metadata_and_colours_of_the_input_are_kept(folder: Path, ask: Call) -> None:
    exif = Image.Exif()
    exif.update({271: "Maker", 274: 3})
    Image.open("photo.png").save("turned.png", exif=exif)
    assert ask("remove", "turned.png", "--rough", "mask.png", "-o", "out.png").exit_code == 0
    made, photo = Image.open("out.png"), np.asarray(Image.open("photo.png"))[::-1, ::-1]
    assert dict(made.getexif()) == {271: "Maker", 274: 1}
    untouched = np.asarray(Image.open("mask.png")) == 0
    assert np.array_equal(np.asarray(made)[untouched][:, :3], photo[untouched])


# ---- what is said ----------------------------------------


def test_it_says_what_runs_where_and_for_how_long(folder: Path, ask: Call, tiny_model_folder: Path) -> None:
    said = ask("matte", "photo.png", "-o", "out.png", "--steps", 5)
    lines = said.stderr.splitlines()
    assert re.fullmatch(r"tiny on cpu, float32: about \d+ MB at the peak \(.+\), very roughly \d+ s", lines[0])
    assert re.fullmatch(r"5 steps at 32x\d+ for 40x24", lines[1])
    assert re.fullmatch(r"less than 1 s|at most about \d.*", lines[2]) and len(lines) == 3
    assert re.fullmatch(r"wrote out\.png \(40x24\) in .* s, of which loading .* s\n", said.stdout)


def test_the_card_gives_the_defaults_of_each_category(folder: Path, ask: Call) -> None:
    made = [report(ask(*verb, "-o", "out.png", "--json")) for verb in (["matte", "photo.png"], ["generate", "a mug"])]
    assert [(m["steps"], m["guidance"]) for m in made] == [(2, 1.0), (3, 2.0)]


def test_quiet_says_nothing(folder: Path, ask: Call) -> None:
    for verb in (["matte", "photo.png", "-o", "out.png"], ["decompose", "photo.png", "-o", "layers"]):
        done = ask(*verb, "--quiet")
        assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")


def test_what_the_reader_notes_is_passed_on(folder: Path, ask: Call) -> None:
    frames = [Image.new("RGB", SIZE[::-1], (40 * i, 0, 90)) for i in range(3)]
    frames[0].save("moving.gif", save_all=True, append_images=frames[1:])
    done = ask("matte", "moving.gif", "-o", "out.png", "--json")
    assert "note: moving.gif: first of 3 frames\n" in done.stderr
    assert report(done)["notes"] == ["moving.gif: first of 3 frames"]


def test_standard_output_of_a_real_process_is_one_json_object(folder: Path, tiny_model_folder: Path) -> None:
    done = subprocess_run("matte", "photo.png", "-o", "out.png", "--json", "--model", tiny_model_folder)
    assert done.returncode == 0 and json.loads(done.stdout)["output"] == "out.png"
    assert done.stdout.count("\n") == 1 and len(done.stderr.splitlines()) == 3, done.stderr


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (3.21, "3.2 s"), (48.4, "48 s"), (59.7, "1 min 0 s"), (125, "2 min 5 s"), (4800, "1 h 20 min")],
)
def test_durations_are_readable(seconds: float, words: str) -> None:
    assert duration(seconds) == words


# ---- terminals, pipes and disks ----------------------------------------


def test_the_package_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "omnialpha", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"omnialpha {omnialpha.__version__}\n", "")


def test_a_terminal_of_ascii_shows_what_it_can(folder: Path, tiny_model_folder: Path) -> None:
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    verb = ["--model", tiny_model_folder, "--device", "cpu"]
    code = """
import sys
from omnialpha.cli.main import main
for arguments in sys.argv[1:]:
    sys.argv[1:] = arguments.split()
    try:
        main()
    except SystemExit as end:
        print("ended with", end.code)
        print("--", file=sys.stderr)
"""
    matte = " ".join(map(str, ["matte", "photo.png", "-o", "café.png", *verb]))
    command = [sys.executable, "-c", code, matte, "tasks", "matte naïve.png -o out.png"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=ascii_only)
    made, table, _ = done.stdout.split("ended with 0\n")
    assert "wrote caf\\xe9.png (40x24)" in made and Path("café.png").exists() and "text_to_image" in table
    assert done.stdout.endswith("ended with 2\n") and "Traceback" not in done.stderr
    assert done.stderr.split("--\n")[2] == "error: There is no file na\\xefve.png; check the path.\n"


@pytest.mark.parametrize("arguments", [["tasks"], ["tasks", "--json"], ["--version"], ["--help"]])
def test_a_closed_pipe_and_a_full_disk_show_no_traceback(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "omnialpha.cli.main", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        process.stdout.close()  # before anything is written
        assert (process.stderr.read(), process.wait(60)) == ("", 1)
    if Path("/dev/full").exists():
        with open("/dev/full", "w") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        assert "No space left on device" in done.stderr


# ---- stopping ----------------------------------------


def test_ctrl_c_during_the_steps_leaves_nothing(
    folder: Path, ask: Call, tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(os.listdir())

    def run(examples: Any, on_step: Any, **options: Any) -> None:
        on_step(SimpleNamespace(index=1, total=2), None)
        raise KeyboardInterrupt

    monkeypatch.setattr(type(tiny_model), "run", lambda self, *args, **options: run(*args, **options))
    for verb in (["matte", "photo.png", "-o", "out.png"], ["decompose", "photo.png", "-o", "layers"]):
        done = ask(*verb, "--json")
        assert done.exit_code == 130 and done.stdout == "" and done.stderr.endswith("stopped, nothing was written\n")
    assert sorted(os.listdir()) == before


def test_a_real_interrupt_ends_a_real_process(folder: Path, tiny_model_folder: Path) -> None:
    before = sorted(os.listdir())
    verb = ["matte", "photo.png", "-o", "out.png", "--steps", "1000", "--model", str(tiny_model_folder)]
    command = [sys.executable, "-m", "omnialpha.cli.main", *verb]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr and process.stdout
        said = [process.stderr.readline() for _ in range(3)]  # the last one comes after the first step
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(60) == 130, said
        assert rest == "\nstopped, nothing was written\n" and process.stdout.read() == ""
    assert sorted(os.listdir()) == before


# ---- options ----------------------------------------


def options_of(verb: str) -> set[str]:
    command: Any = get_command(main.app)
    return {name for p in command.commands[verb].params for name in p.opts if name.startswith("--")} - {"--help"}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_the_common_options(verb: str) -> None:
    common = {
        "--model",
        "--device",
        "--seed",
        "--steps",
        "--guidance",
        "--size",
        "--frame",
        "--raw",
        "--refine",
        "--quiet",
        "--json",
    }
    common |= {"--base", "--vae", "--lora", "--dtype", "--offload", "--quantize", "--attention", "--compile"}
    common |= {"--approximate", "--finder", "--instructions"}
    assert common == {f"--{name}" for name in options.COMMON} and common | {"--output"} <= options_of(verb)


@pytest.mark.parametrize(
    ("verb", "category", "beside"),
    [
        ("run", None, None),
        ("matte", "matting", Role.COMPOSITE),
        ("remove", "removal", Role.COMPOSITE),
        ("decompose", "decomposition", Role.COMPOSITE),
        ("complete", "completion", None),
        ("generate", "generation", None),
    ],
)
def test_the_pictures_of_a_verb_are_the_roles_of_the_table(
    verb: str, category: str | None, beside: Role | None
) -> None:
    rows = [task for task in TASKS.values() if category in (None, task.category)]
    roles = {f"--{role}" for task in rows for role in task.inputs if role is not beside}
    others = {"--full"} | ({"--background"} if verb == "matte" else set())  # a switch, and what a cut-out is put on
    assert options_of(verb) & {f"--{role}" for role in Role} - others == roles


@pytest.mark.parametrize(
    "arguments", [["--help"], *([verb, "--help"] for verb in (*VERBS, "tasks", "train", "demo", "doctor"))]
)
def test_help(arguments: list[str], call: Call) -> None:
    done = call(*arguments)
    assert done.exit_code == 0 and "Usage: omnialpha" in done.stdout and done.stderr == ""


def test_nothing_asked_is_help_and_version_is_the_package_s(call: Call) -> None:
    assert "Usage: omnialpha" in call().stdout and call().exit_code == 2
    assert call("--version").stdout == f"omnialpha {omnialpha.__version__}\n"


# ---- tasks, doctor, train, demo ----------------------------------------


def test_tasks_lists_the_table(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    made = report(call("tasks", "--json"))
    assert [row["name"] for row in made["tasks"]] == list(TASKS) and len(made["tasks"]) == 21
    for row in made["tasks"]:
        task = TASKS[row["name"]]
        assert (row["category"], row["summary"], row["text"]) == (task.category, task.summary, task.text)
        assert (row["inputs"], row["outputs"]) == (list(task.inputs), list(task.targets))
    assert {row["name"]: row["derived_from"] for row in made["roles"]} == {r: list(DERIVED.get(r, ())) for r in Role}
    shown = call("tasks")
    assert shown.exit_code == 0 and shown.stderr == "" and all(name in shown.stdout for name in TASKS)
    assert "background + foreground (1 to 7)" in shown.stdout and "foreground over background" in shown.stdout


def test_the_listed_commands_run(call: Call, folder: Path, ask: Call) -> None:
    row = next(row for row in report(call("tasks", "--json"))["tasks"] if row["name"] == "matting_trimap")
    assert row["command"] == "omnialpha run matting_trimap --composite FILE --trimap FILE -o FILE"
    words = row["command"].split()[1:]
    for role in (Role.COMPOSITE, Role.TRIMAP):
        words[words.index(f"--{role}") + 1] = FILES[role]
    assert ask(*words[:-1], "out.png").exit_code == 0


@pytest.mark.parametrize("arguments", [["--help"], ["matte", "--help"], ["tasks"], ["tasks", "--json"], ["--version"]])
def test_what_needs_no_model_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom omnialpha.cli.main import app\ntry:\n    app(sys.argv[1:])\nexcept SystemExit as end:\n"
        "    assert not end.code\nheavy = {'torch', 'numpy', 'PIL', 'transformers', 'diffusers', 'scipy'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_doctor_finds_a_working_model(call: Call, tiny_model_folder: Path) -> None:
    made = report(call("doctor", "--model", tiny_model_folder, "--json"))
    assert made["problem"] is None and made["device"] == "cpu" and made["devices"][-1] == "cpu"
    assert made["omnialpha"] == omnialpha.__version__ and made["torch"] and made["transformers"] and made["diffusers"]
    assert (made["model"]["name"], made["model"]["license"]) == ("tiny", "Apache-2.0") and made["threads"] >= 1
    assert made["seconds"].keys() == {"load", "two_steps"}
    shown = call("doctor", "--model", tiny_model_folder)
    assert shown.exit_code == 0 and shown.stderr == "" and re.search(r"^problem +none$", shown.stdout, re.M)


def test_doctor_names_the_problem(call: Call, monkeypatch: pytest.MonkeyPatch, tiny_model_folder: Path) -> None:
    done = call("doctor", "--model", "missing", "--json")
    assert done.exit_code == 1 and "'missing'" in json.loads(done.stdout)["problem"] and done.stderr == ""
    monkeypatch.setattr(doctor, "load", lambda *_: broken())
    assert "makes NaN" in json.loads(call("doctor", "--model", tiny_model_folder, "--json").stdout)["problem"]


def broken() -> Any:
    """A model that makes NaN."""

    def run(examples: Any, steps: int) -> Any:
        return [[SimpleNamespace(rgba=examples[0].inputs[0] * float("nan"))]]

    return SimpleNamespace(native_size=lambda: (8, 8), run=run, device="cpu", card=SimpleNamespace(name="broken"))


def test_train_hands_over_recipe_and_overrides(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from omnialpha.training import run

    seen: list[Any] = []

    def train(*arguments: Any) -> dict[str, float]:
        seen.append(arguments)
        print("chatter")
        return {"loss": 0.25, "psnr": float("inf")}

    monkeypatch.setattr(run, "run", train)
    assert call("train", "recipe.toml", "fit.steps=3", "batch=2").stdout == "loss 0.25, psnr inf\n"
    assert call("train", "recipe.toml", "--quiet").stdout == ""
    assert report(call("train", "recipe.toml", "--json")) == {"loss": 0.25, "psnr": None}
    assert seen == [
        (Path("recipe.toml"), [*o], q) for o, q in ((["fit.steps=3", "batch=2"], False), ([], True), ([], False))
    ]


def test_demo_is_handed_its_options(call: Call, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    from omnialpha import loading
    from omnialpha.demo import demo_runs

    seen: list[Any] = []

    def load(*arguments: Any, **named: Any) -> Any:
        seen.append((arguments, named))
        raise InputError("no model")

    monkeypatch.setattr(loading, "load", load)
    assert call("demo").exit_code == 2 and Path("demo/photos").is_dir()
    given = ("--model", "tiny", "--device", "cpu", "--seed", 5, "--quiet", "--instructions", "own.json")
    assert call("demo", "-o", "here", *given).exit_code == 2 and Path("here/photos").is_dir()
    assert seen == [
        ((None,), {"instructions": None, "device": "auto"}),
        (("tiny",), {"instructions": Path("own.json"), "device": "cpu"}),
    ]

    def interrupted(runner: Any, photo: Any) -> Any:
        assert runner.seed == 5
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(loading, "load", lambda *arguments, **named: None)
    monkeypatch.setattr(demo_runs, "refused", lambda model: [])
    monkeypatch.setattr(demo_runs, "of_photograph", interrupted)
    done = call("demo", "-o", "here", "--seed", 5, "--quiet")
    assert done.exit_code == 130 and done.stderr == "\nstopped, what is finished is in here\n"
