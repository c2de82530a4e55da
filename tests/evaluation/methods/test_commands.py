"""Programs as methods: what they are told, what they may answer, and one sentence for whatever goes wrong."""

import shlex
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from omnialpha import masks
from omnialpha.errors import InputError
from omnialpha.evaluation.methods.commands import WORDS, of_command, split_only
from omnialpha.tasks import TASKS, Example, Role

HEIGHT, WIDTH = 12, 20
PYTHON = shlex.quote(sys.executable)


def program(code: str, *words: str) -> str:
    """A command that runs Python code with some words behind it."""
    return f"{PYTHON} -c {shlex.quote(code)} {' '.join(words)}"


def picture() -> Tensor:
    """An opaque composite (4, H, W) of 8-bit values: red inside, green around."""
    rgba = torch.zeros(4, HEIGHT, WIDTH)
    rgba[1], rgba[3] = 204 / 255, 1.0
    rgba[0, 3:9, 5:15], rgba[1, 3:9, 5:15] = 1.0, 0.0
    return rgba


def alpha() -> Tensor:
    made = torch.zeros(HEIGHT, WIDTH)
    made[3:9, 5:15] = 1.0
    return made


def ask(task: str, **more: object) -> Example:
    row = TASKS[task]
    pictures: dict[Role, Tensor] = {role: masks.as_picture(alpha()) for role in row.inputs}
    pictures |= {role: picture() for role in row.inputs if role in (Role.COMPOSITE, Role.FOREGROUND, Role.BACKGROUND)}
    return row.example(pictures, prompt="a red mug" if row.text else None, size=(HEIGHT, WIDTH), **more)  # type: ignore[arg-type]


def answer(command: str, task: str = "matting_auto", seed: int = 0, timeout: float = 60.0) -> Tensor:
    return of_command(command, timeout).make([ask(task)], [seed])[0]


COPY = "import sys, shutil; shutil.copy(sys.argv[1], sys.argv[2])"
SAVE = "import sys; from PIL import Image; im = Image.open(sys.argv[1]); "


def test_a_program_gets_the_picture_and_its_rgba_is_taken_as_it_is() -> None:
    code = SAVE + "im = im.convert('RGBA'); im.putalpha(51); im.save(sys.argv[2])"
    made = answer(program(code, "{input}", "{output}"))
    assert made.shape == (1, 4, HEIGHT, WIDTH)
    assert torch.equal(made[0, :3], picture()[:3]) and bool((made[0, 3] == 51 / 255).all())


def test_a_grey_picture_is_an_alpha_with_colours_of_the_subject() -> None:
    code = SAVE + "im.convert('RGB').getchannel('R').save(sys.argv[2])"  # red is where the subject is
    made = answer(program(code, "{input}", "{output}"))[0]
    assert torch.equal(made[3], alpha())
    assert torch.equal(made[:3, made[3] == 1], picture()[:3, made[3] == 1])


def test_grey_with_alpha_is_a_layer() -> None:
    code = SAVE + "la = Image.new('LA', im.size, (153, 102)); la.save(sys.argv[2])"
    made = answer(program(code, "{input}", "{output}"))[0]
    assert bool((made[:3] == 153 / 255).all()) and bool((made[3] == 102 / 255).all())


def test_an_opaque_picture_with_an_alpha_channel_is_all_subject() -> None:
    code = SAVE + "im.convert('RGBA').save(sys.argv[2])"
    assert bool((answer(program(code, "{input}", "{output}"))[0, 3] == 1).all())


def test_maps_texts_seeds_and_sizes_reach_the_program(tmp_path: Path) -> None:
    said = tmp_path / "said.txt"
    code = f"{SAVE} im.convert('RGBA').save(sys.argv[2]); open({str(said)!r}, 'w').write('|'.join(sys.argv[3:]))"
    answer(program(code, "{input}", "{output}", "{prompt}", "{seed}", "{height}x{width}"), "matting_text", seed=7)
    assert said.read_text() == f"a red mug|7|{HEIGHT}x{WIDTH}"
    for field, task in (("{trimap}", "matting_trimap"), ("{mask}", "matting_rough")):
        made = answer(program(SAVE + "im.save(sys.argv[2])", field, "{output}", "{input}"), task)  # the map, opaque
        assert torch.equal(made[0, 3], torch.ones(HEIGHT, WIDTH)) and torch.equal(made[0, 0], alpha())


def test_an_opaque_background_needs_no_alpha() -> None:
    made = answer(program(SAVE + "im.convert('RGB').save(sys.argv[2])", "{input}", "{output}"), "removal_auto")
    assert torch.equal(made[0], picture())


def test_several_layers_are_read_from_a_folder_by_name() -> None:
    code = SAVE + "[im.convert('RGBA').save(sys.argv[2] + '/' + k + '.png') for k in 'ba'[:int(sys.argv[3])]]"
    assert answer(program(code, "{input}", "{output}", "2"), "decompose_auto").shape == (2, 4, HEIGHT, WIDTH)
    with pytest.raises(InputError, match="wrote 1 pictures into its {output} folder, not 2"):
        answer(program(code, "{input}", "{output}", "1"), "decompose_auto")


def test_no_shell_reads_the_command(tmp_path: Path) -> None:
    said = tmp_path / "said.txt"
    code = f"{SAVE} im.convert('RGBA').save(sys.argv[2]); open({str(said)!r}, 'w').write(' '.join(sys.argv[3:]))"
    answer(program(code, "{input}", "{output}", "$HOME", "';'", "'two words'", "|", "cat"))
    assert said.read_text() == "$HOME ; two words | cat"


@pytest.mark.parametrize(
    ("fields", "does"),
    [
        ("{input} {output}", {"matting_auto", "removal_auto", "decompose_auto"}),
        ("{input} {trimap} {output}", {"matting_trimap", "removal_trimap", "decompose_trimap"}),
        ("{prompt} {output}", {"text_to_image"}),
    ],
)
def test_its_fields_say_what_it_does(fields: str, does: set[str]) -> None:
    method = of_command(f"{PYTHON} {fields}")
    assert {task for task in TASKS if method.does(task)} == does


def test_a_task_or_category_in_front_narrows_it() -> None:
    assert split_only("matting=rembg i {input}") == ("matting", "rembg i {input}")
    assert split_only("env A=1 rembg") == ("", "env A=1 rembg")
    method = of_command(f"removal={PYTHON} {{input}} {{mask}} {{output}}")
    assert [t for t in TASKS if method.does(t)] == ["removal_alpha", "removal_precise", "removal_rough"]
    assert of_command(f"{PYTHON} {{input}} {{output}}", only="matting_auto").does("matting_auto")
    assert method.given.startswith("command: ") and method.name == Path(sys.executable).name


def test_identity_is_of_the_command() -> None:
    one, same, other = (of_command(f"{PYTHON} {{input}} {{output}} {w}") for w in ("a", "a", "b"))
    assert one.identity == same.identity != other.identity


def test_a_program_is_told_the_prompt_alone_or_the_whole_instruction() -> None:
    for row in TASKS.values():
        for wording in range(len(row.instructions) if row.text else 0):
            pictures = {role: picture() for role in row.inputs}
            asked = row.example(pictures, prompt="a: red {mug}", size=(HEIGHT, WIDTH), wording=wording)
            assert WORDS["prompt"](asked, 0) == "a: red {mug}"
    asked = TASKS["matting_auto"].example(composite=picture(), wording=3)
    assert WORDS["prompt"](asked, 0) == TASKS["matting_auto"].instructions[3]


# ---- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("no-such-program-here {input} {output}", "there is no program no-such-program-here: install it"),
        (f"{PYTHON} {{input}}", "says nowhere where the picture goes: put {output}"),
        (f"{PYTHON} {{input}} {{ouput}}", "{ouput} in the command"),
        (f"{PYTHON} 'open {{output}}", "close its quotes"),
        ("", "says nowhere"),
    ],
)
def test_commands_that_cannot_work_are_refused_at_once(command: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        of_command(command)


def test_settings_out_of_range_are_refused() -> None:
    for settings, words in (({"timeout": 0.0}, "timeout=0"), ({"only": "mattin"}, "'mattin' is no task")):
        with pytest.raises(InputError, match=words):
            of_command(f"{PYTHON} {{output}}", **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import sys; print('out of luck', file=sys.stderr); sys.exit(3)", r"ended with exit code 3: out of luck$"),
        ("import sys; sys.exit(4)", "exit code 4 and said nothing"),
        ("pass", "wrote no file"),
        (SAVE + "im.resize((5, 6)).convert('RGBA').save(sys.argv[2])", "answers 5x6 px, not 20x12 px"),
        (SAVE + "im.convert('RGB').save(sys.argv[2])", "a colour picture without alpha"),
        ("import sys; open(sys.argv[2], 'w').write('no picture')", "output.png"),
    ],
)
def test_runs_that_go_wrong_are_told_in_a_sentence(code: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as raised:
        answer(program(code, "{input}", "{output}"))
    assert "\n" not in str(raised.value)


def test_a_program_that_takes_too_long_is_ended_with_what_it_started(tmp_path: Path) -> None:
    started = tmp_path / "started"
    child = f"import time; time.sleep(1.5); open({str(started)!r}, 'w')"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    with pytest.raises(InputError, match="took more than 0.5 s"):
        answer(program(code, "{input}", "{output}"), timeout=0.5)
    time.sleep(2)
    assert not started.exists()
