"""What paints a scene around a foreground and takes it out again."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import QwenImageEditPlusPipeline
from PIL import Image

from omnialpha import rgba
from omnialpha.curation import editing
from omnialpha.curation.editing import EDITORS, REMOVERS, EditSettings
from omnialpha.curation.vlm import GREY, VLMSettings
from omnialpha.errors import InputError
from reference import published_pipeline
from released import write_base

FRONT = torch.zeros(4, 48, 72)
FRONT[:, 12:36, 20:50] = torch.tensor([0.8, 0.1, 0.1, 1.0])[:, None, None]
HOLE = (FRONT[3] > 0.05).float()


def test_our_own_model_completes_and_removes() -> None:
    whole = EDITORS["completion"](EditSettings("completion", steps=2)).edit(FRONT, "", "a red flag on a lawn", 3)
    assert whole.shape == FRONT.shape and bool((whole[3] == 1).all())
    assert torch.equal(whole[:, 14:34, 22:48], FRONT[:, 14:34, 22:48])  # what is given stays
    gone = REMOVERS["removal"](EditSettings("removal", steps=2), "").remove(whole, HOLE, 3)
    assert bool((gone[3] == 1).all()) and torch.equal(gone[:, :8], whole[:, :8])  # what is not marked stays
    assert float((gone - whole)[:3, 14:34, 22:48].abs().mean()) > 0.1
    assert editing._loaded.cache_info().misses == 1  # one model for both


@pytest.mark.slow
def test_the_published_editor_gets_the_foreground_on_grey_and_the_instruction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = published_pipeline(write_base(tmp_path / "base"))
    loaded: dict[str, Any] = {}
    monkeypatch.setattr(
        QwenImageEditPlusPipeline,
        "from_pretrained",
        classmethod(lambda cls, where, **more: loaded.update(where=where, **more) or pipeline),
    )
    settings = EditSettings("qwen-image-edit", "folder", "cpu", "float32", steps=2, guidance=2.0)
    editor = EDITORS["qwen-image-edit"](settings)
    assert loaded == {"where": "folder", "torch_dtype": torch.float32}
    made = editor.edit(FRONT, "Replace the background with a lawn.", "", 5)
    with torch.no_grad():
        flat = (rgba.flatten(FRONT, GREY).permute(1, 2, 0) * 255).round().byte().numpy()
        expected = pipeline(
            [Image.fromarray(flat)], prompt="Replace the background with a lawn.", negative_prompt=" ", height=48,
            width=64, num_inference_steps=2, true_cfg_scale=2.0, generator=torch.Generator().manual_seed(5),
        ).images[0]  # fmt: skip
    assert made.shape == (4, 48, 64)  # multiples of 16; `paint` takes it to the foreground's size
    assert np.array_equal((made[:3].permute(1, 2, 0) * 255).round().byte().numpy(), np.asarray(expected))
    assert editing.paint(made, (48, 72)).shape == (4, 48, 72)


def test_object_clear_by_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    class ObjectClearPipeline:
        @classmethod
        def from_pretrained_with_custom_modules(cls, name: str, **more: Any) -> "ObjectClearPipeline":
            calls.append({"name": name, **more})
            return cls()

        def set_progress_bar_config(self, disable: bool) -> None:
            pass

        def to(self, device: Any) -> "ObjectClearPipeline":
            return self

        def __call__(self, **arguments: Any) -> Any:
            calls.append(arguments)
            return SimpleNamespace(images=[arguments["image"]])

    module: Any = ModuleType("objectclear.pipelines")
    module.ObjectClearPipeline = ObjectClearPipeline
    monkeypatch.setitem(sys.modules, "objectclear", ModuleType("objectclear"))
    monkeypatch.setitem(sys.modules, "objectclear.pipelines", module)
    remover = REMOVERS["objectclear"](EditSettings("objectclear", device="cpu", dtype="float32", steps=7), "")
    picture = rgba.opaque(torch.linspace(0, 1, 90).expand(3, 60, 90))
    hole = torch.zeros(60, 90)
    hole[20:40, 30:60] = 1
    made = remover.remove(picture, hole, 1)
    assert calls[0]["name"] == "jixin0101/ObjectClear" and calls[0]["apply_attention_guided_fusion"]
    asked = calls[1]
    assert asked["num_inference_steps"] == 7 and asked["guidance_scale"] == 2.5 and asked["strength"] == 0.99
    assert asked["image"].size == asked["mask_image"].size == (768, 512) and asked["mask_image"].mode == "L"
    assert made.shape == (4, 512, 768)
    assert float((editing.paint(made, (60, 90)) - picture).abs().mean()) < 0.05


def test_without_the_package_it_says_so() -> None:
    with pytest.raises(InputError, match="needs the package objectclear"):
        REMOVERS["objectclear"](EditSettings("objectclear"), "")


def test_a_server_edits_and_removes(image_server: Any) -> None:
    settings = EditSettings("server", server=VLMSettings(image_server.url, "m"))
    made = EDITORS["server"](settings).edit(FRONT, "Replace it.", "", 0)
    assert image_server.fields[0]["prompt"] == b"Replace it." and "mask" not in image_server.fields[0]
    assert made.shape == FRONT.shape
    picture = rgba.opaque(rgba.flatten(FRONT))
    gone = REMOVERS["server"](settings, "Take it away.").remove(picture, HOLE, 0)
    assert image_server.fields[1]["prompt"] == b"Take it away."
    assert torch.equal(gone[:, HOLE == 0], picture[:, HOLE == 0]) and bool((gone[0][HOLE == 1] < 0.1).all())


def test_an_unknown_kind_names_what_there_is() -> None:
    with pytest.raises(InputError, match="remove.kind='inpaint' is not known: use one of removal, objectclear, server"):
        editing.check_kind("remove", "inpaint")
