"""The gallery of the docs: every task once, on a photograph of the demo, by the command that its page names.

`python -m omnialpha.demo.gallery docs` runs the commands and writes docs/gallery.md and docs/images/gallery.
"""

from __future__ import annotations

import shlex
import sys
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image, ImageOps
from torch import Tensor

from omnialpha import masks
from omnialpha.demo.demo_runs import PHOTOS, Photo, outline_mask, photograph
from omnialpha.io import read_image, write_image
from omnialpha.io.contact_sheet import card
from omnialpha.io.layers import LayerStack
from omnialpha.tasks import TASKS, Role, Task, numbered

PAGE, PICTURES = "gallery.md", "images/gallery"
CELL, MARGIN, QUALITY = 176, 8, 82  # pixels: the side of a picture in a strip, around it; of WebP
TRIMAP = 0.02  # radius of a trimap as a share of the shorter side
HEAD = """# Gallery

What each of the {count} tasks takes and makes, with the command that made the picture. `make gallery` writes this page
from the table of tasks and runs every command anew, with the bundled model, nano, and seed 0.

**What to expect.** Nano is small. The subjects are its finder's work, finished at full resolution, and are what it is
good at. What was behind them is filled from the texture around. What has to be painted around a layer or from text is
its transformer's work: abstract, at 96 px. Of the words it follows the colour, and a simple shape where the text is all
that is given. A text that names a subject tells drawn things apart; in photographs it mostly changes nothing. The
same commands run the [released weights](released-weights.md).

The photographs come with scikit-image (`omnialpha demo` writes them, too). Rough masks were drawn by hand; the other
maps and the foregrounds are of nano's own cut-outs. `omnialpha matte`, `remove`, `decompose`, `complete` and `generate`
are shorter for the same.
"""


def photo_of(task: Task) -> Photo:
    """Each in its turn, so that the page shows all."""
    return PHOTOS[list(TASKS).index(task.name) % len(PHOTOS)]


def prompt_of(task: Task) -> str | None:
    """What the text of a task says of its photograph."""
    photo = photo_of(task)
    if task.text is None:
        return None
    if Role.COMPOSITE in task.inputs:
        return photo.removed
    return photo.scene if Role.FOREGROUND in task.inputs else photo.wish


def input_file(photo: Photo, role: Role) -> str:
    """The photograph itself is the composite, and the background where one is asked for."""
    return f"{photo.name}.png" if role in (Role.COMPOSITE, Role.BACKGROUND) else f"{photo.name}-{role}.png"


def arguments(task: Task) -> list[str]:
    """Of `omnialpha`, for the task."""
    photo, prompt = photo_of(task), prompt_of(task)
    line = ["run", task.name]
    for role in task.inputs:
        line += [f"--{role}", input_file(photo, role)]
    line += ["--prompt", prompt] if prompt else []
    return [*line, "-o", task.name if len(task.targets) > 1 else f"{task.name}.png"]


def section(task: Task) -> str:
    """Of the page: what the task does, the command, the picture."""
    roles = [" + ".join(f"`{role}`" for role in part) for part in (task.inputs, task.targets)]
    takes = roles[0] if task.inputs else "a text"
    takes += " and a text" if task.inputs and task.text else ""
    return f"""## {task.name}

Makes {task.summary}: {takes} → {roles[1]}.

```bash
omnialpha {shlex.join(arguments(task))}
```

![{task.name}: inputs, then outputs]({PICTURES}/{task.name}.webp)
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD.format(count=len(TASKS)), *map(section, TASKS.values())])


def write_inputs(folder: Path) -> None:
    """The pictures that the commands name."""
    from omnialpha.loading import load

    model = load()
    for photo in PHOTOS:
        picture = photograph(photo)
        size = (int(picture.shape[1]), int(picture.shape[2]))
        cutout = model.matte(picture)
        alpha = cutout[3]
        maps = {
            Role.ALPHA: alpha,
            Role.PRECISE: masks.precise(alpha),
            Role.TRIMAP: masks.trimap(alpha, TRIMAP * min(size)),
        }
        made = {role: masks.as_picture(values) for role, values in maps.items()}
        made |= {Role.COMPOSITE: picture, Role.FOREGROUND: cutout, Role.ROUGH: outline_mask(photo, size)}
        for role, pixels in made.items():
            write_image(folder / input_file(photo, role), pixels)


def strip(folder: Path, task: Task) -> Image.Image:
    """Inputs, an arrow, outputs, drawn from the files in `folder`."""
    files = [(str(role), folder / input_file(photo_of(task), role)) for role in task.inputs]
    given: list[tuple[str, Tensor]] = [(label, read_image(file).rgba) for label, file in files]
    if len(task.targets) > 1:
        made = [(layer.name, layer.rgba) for layer in LayerStack.load(folder / task.name)]
    else:
        made = [(numbered(task.targets)[0], read_image(folder / f"{task.name}.png").rgba)]
    drawn = card("", [group for group in (given, made) if group], prompt_of(task) or "", CELL)
    left, top, right, bottom = ImageOps.invert(drawn).getbbox() or (0, 0, *drawn.size)
    return drawn.crop((left - MARGIN, top - MARGIN, right + MARGIN, bottom + MARGIN))


def run(folder: Path, line: list[str]) -> None:
    """A command in a folder, in this process, which need not start anew."""
    from omnialpha.cli.main import app

    with chdir(folder):
        try:
            app(line)
        except SystemExit as done:
            if done.code:
                raise


def write(docs: Path) -> None:
    """Run all commands in a temporary folder; write strips and page below `docs`."""
    pictures = docs / PICTURES
    pictures.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder)
        for task in TASKS.values():
            run(folder, arguments(task))
            strip(folder, task).save(pictures / f"{task.name}.webp", quality=QUALITY, method=6)
    for old in pictures.iterdir():
        if old.stem not in TASKS:
            old.unlink()
    (docs / PAGE).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
