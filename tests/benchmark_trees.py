"""Benchmarks of a few tiny pictures, in the layouts in which they are published."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from layered import HEIGHT, WIDTH, back, front


def save(pixels: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def subject(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """(H, W, 4) uint8, in another place for the next number."""
    return front(number, 1 + number % 2, height, width)


def composite(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """(H, W, 3) uint8: `subject` over `back`."""
    layer = subject(number, height, width).astype(float)
    share = layer[..., 3:] / 255
    return (share * layer[..., :3] + (1 - share) * back(number, height, width)).round().astype(np.uint8)


def alpha(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return subject(number, height, width)[..., 3]


def trimap(matte: np.ndarray) -> np.ndarray:
    """0, 128 where it is soft, 255."""
    return np.where((matte > 0) & (matte < 255), 128, matte).astype(np.uint8)


def matting(
    root: Path, names: Sequence[str], picture: str = "original", truth: str = "mask", trimaps: bool = True,
    of: str = ".jpg", size: tuple[int, int] = (HEIGHT, WIDTH),
) -> Path:  # fmt: skip
    for number, name in enumerate(names):
        save(composite(number, *size), root / picture / f"{name}{of}")
        save(alpha(number, *size), root / truth / f"{name}.png")
        if trimaps:
            save(trimap(alpha(number, *size)), root / "trimap" / f"{name}.png")
    return root


def removal(root: Path, names: Sequence[str], picture: str = "img", mask: str = "{}", of: str = "mask") -> Path:
    for number, name in enumerate(names):
        save(composite(number), root / picture / f"{name}.jpg")
        save(back(number), root / "gt" / f"{name}.jpg")
        save((alpha(number) > 127).astype(np.uint8) * 255, root / of / f"{mask.format(name)}.png")
    return root


def rw100(root: Path, index: bool = True) -> Path:
    labels = {}
    for number, name in enumerate(["p_a_0", "p_a_1", "p_b_0"]):
        save(composite(number), root / "image_all" / f"{name}.jpg")
        save(alpha(number), root / "mask" / f"{name}.png")
        labels[name] = {"image_name": name, "expressions": [f"disk {number}", f"the disk numbered {number}"]}
    (root / "refmatte_rw100_label.json").write_text(json.dumps(labels))
    if index:
        (root / "eval_index_expression.json").write_text(json.dumps(dict.fromkeys(labels, 0)))
    return root


def composition_1k(root: Path) -> Path:
    """Two foregrounds, of which the second is larger than its backgrounds."""
    test = root / "Combined_Dataset" / "Test_set"
    images, fronts = test / "Adobe-licensed images", ["b one.png", "a.png"]
    for number, name in enumerate(fronts):
        size = (30 + 20 * number, 40 + 20 * number)
        save(subject(number, *size)[..., :3], images / "fg" / name)
        save(alpha(number, *size), images / "alpha" / name)
        for place in range(20):
            save(trimap(alpha(number, *size)), images / "trimaps" / f"{Path(name).stem}_{place}.png")
    backs = [f"2008_{k:06}.jpg" for k in range(40)]
    for k, name in enumerate(backs):
        save(back(k % 20, 36, 48), root / "VOCdevkit" / "VOC2012" / "JPEGImages" / name)
    (test / "test_fg_names.txt").write_text("\r\n".join(fronts) + "\r\n")
    (test / "test_bg_names.txt").write_text("\r\n".join(backs))
    return root


def distinctions_646(root: Path) -> Path:
    for number, name in enumerate(["x", "y"]):
        save(subject(number)[..., :3], root / "Test" / "FG" / f"{name}.png")
        save(alpha(number), root / "Test" / "GT" / f"{name}.png")
    backs = [f"2007_{k:06}.jpg" for k in range(40)]
    for k, name in enumerate(backs):
        save(back(k % 20, 36, 48), root / "bg" / name)
    (root / "Test" / "bg_test.txt").write_text("\r\n".join(backs))
    return root


def alphatest(root: Path, categories: Sequence[str] = ("animal", "toy"), each: int = 2) -> Path:
    data = root / "Diffusion_test_data"
    for category in categories:
        for number in range(each):
            save(front(number, 1), data / "images" / category / f"rgba_{number:02}.png")
        (data / "prompts" / category).mkdir(parents=True)
        lines = [f"a {category} number {number}" for number in range(each)]
        (data / "prompts" / category / "prompt.txt").write_text("\n".join(lines) + "\n")
    return root


def crello_folders(root: Path, composites: bool = True) -> Path:
    for number, layers in enumerate((2, 3)):
        save(back(number), root / f"design{number}" / "00.png")
        for k in range(1, layers):
            save(front(number, k), root / f"design{number}" / f"{k:02}.png")
        if composites and number == 0:
            save(composite(0), root / "design0" / "composite.png")
    return root


def picture_bytes(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def design() -> dict[str, Any]:
    """A row of Crello's table: a canvas of 720x540 px, two boxes that touch, one that does not, a hidden one."""

    def box(red: int, height: int = 8, width: int = 8) -> dict[str, Any]:
        return {"bytes": picture_bytes(np.full((height, width, 4), (red, 0, 0, 255), np.uint8)), "path": None}

    return {
        "id": "d1", "canvas_width": 720, "canvas_height": 540,
        "left": [10.0, 0.0, 90.0, 150.0, 480.0], "top": [10.0, 0.0, 90.0, 150.0, 90.0],
        "width": [90.0, 720.0, 120.0, 120.0, 120.0], "height": [90.0, 540.0, 120.0, 120.0, 120.0],
        "angle": [0.0, 0.0, 0.0, 0.0, 90.0], "opacity": [1.0, 1.0, 1.0, 0.5, 1.0],
        "image": [box(1), box(50), box(100), box(150), box(200, 4, 16)],
    }  # fmt: skip
