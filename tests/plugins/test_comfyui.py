"""The nodes of ComfyUI, each run once, with a stub in the place of ComfyUI."""

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import omnialpha
from comfy_stub import PACKAGE, load_nodes
from omnialpha.errors import InputError
from omnialpha.io.layer_writing import LAYER_FORMATS
from omnialpha.io.stack_reading import read_stack
from omnialpha.tasks import CATEGORIES, MAPS, TASKS

SIZE = (24, 32)
GENERATOR = torch.Generator().manual_seed(0)
PHOTO = torch.rand(2, *SIZE, 3, generator=GENERATOR)
MARK = torch.zeros(1, *SIZE)
MARK[:, 6:18, 8:24] = 1  # the subject
TASK_NODES = {
    "matting": "OmniAlphaMatte",
    "removal": "OmniAlphaRemove",
    "decomposition": "OmniAlphaDecompose",
    "completion": "OmniAlphaComplete",
    "generation": "OmniAlphaGenerate",
}


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    return load_nodes(monkeypatch, tmp_path)


def inputs_of(node: Any) -> dict[str, Any]:
    return {slot.id: slot for slot in node.define_schema().inputs}


def test_every_task_has_a_node_that_takes_what_it_needs(nodes) -> None:
    assert set(TASK_NODES) == set(CATEGORIES) and set(TASK_NODES.values()) <= set(nodes)
    offered = {node: inputs_of(nodes[node])["task"].more["options"] for node in TASK_NODES.values()}
    assert sorted(sum(offered.values(), [])) == sorted(TASKS)
    for row in TASKS.values():
        given = inputs_of(nodes[TASK_NODES[row.category]])
        wanted = {"mask" if role in MAPS else str(role) for role in row.inputs}
        wanted |= {"prompt"} if row.text else set()
        wanted |= {"layers"} if row.many in row.targets and row.many else set()
        wanted |= {f"{row.many}s"} if row.many in row.inputs else set()
        assert wanted | {"seed", "steps", "guidance"} <= set(given), row.name


def test_every_mask_says_what_it_means(nodes) -> None:
    masks = [slot for node in nodes.values() for slot in (*node.define_schema().inputs, *node.define_schema().outputs)]
    masks = [slot for slot in masks if slot.io_type == "MASK"]
    assert masks and all("1 - alpha" in slot.more["tooltip"] for slot in masks)


def test_options_are_those_of_the_library(nodes, tiny_model_folder: Path) -> None:
    seed, steps, guidance = (inputs_of(nodes["OmniAlphaMatte"])[name].more for name in ("seed", "steps", "guidance"))
    assert (seed["default"], steps["default"], guidance["default"]) == (0, 0, -1)
    assert "any device" in seed["tooltip"] and "the model's own if left out, which is 0 here" in steps["tooltip"]
    shown = {slot.id: slot.more["default"] for slot in nodes["OmniAlphaLoadModel"].define_schema().inputs}
    model = nodes["OmniAlphaLoadModel"].execute(**shown | {"model": str(tiny_model_folder), "device": "cpu"}).args[0]
    assert model.card.name == "tiny"


def test_a_batch_is_its_pictures_one_by_one(nodes, tiny_model) -> None:
    image, mask = nodes["OmniAlphaMatte"].execute(tiny_model, "matting_auto", composite=PHOTO, seed=5, steps=1).args
    assert image.shape == (2, *SIZE, 4) and mask.shape == (2, *SIZE)
    assert torch.equal(mask, 1 - image[..., 3])
    for b in range(2):
        own = tiny_model.matte(PHOTO[b].permute(2, 0, 1), seed=5 + b, steps=1)
        assert torch.equal(image[b], own.permute(1, 2, 0))


def test_the_bundled_finder_cuts_out(nodes) -> None:
    picture = torch.full((1, 64, 64, 3), 0.9)
    picture[:, 16:48, 16:48] = torch.tensor([0.8, 0.1, 0.1])
    image, mask = nodes["OmniAlphaMatte"].execute(omnialpha.load(device="cpu"), "matting_auto", composite=picture).args
    assert image[0, 32, 32, 3] > 0.9 and mask[0, 32, 32] < 0.1 and mask[0, 2, 2] > 0.9


def test_a_mask_is_one_minus_alpha_unless_it_marks_the_subject(nodes, tiny_model) -> None:
    run = nodes["OmniAlphaRemove"].execute
    photo, wanted = PHOTO[:1], tiny_model.remove(PHOTO[0].permute(2, 0, 1), rough=MARK[0], steps=1)
    for given in ({"mask": 1 - MARK}, {"mask": MARK[0], "mask_marks_subject": True}):
        image, mask = run(tiny_model, "removal_rough", composite=photo, steps=1, guidance=-1, **given).args
        assert torch.equal(image[0], wanted.permute(1, 2, 0)) and not mask.any()
        assert torch.equal(image[0, :3, :, :3], photo[0, :3]) and not torch.equal(image[0, ..., :3], photo[0])


def test_layers_are_split_saved_loaded_and_joined(nodes, tiny_model, tmp_path: Path) -> None:
    given = {"composite": PHOTO, "layers": 3, "steps": 1}
    stacks, layers, names = nodes["OmniAlphaDecompose"].execute(tiny_model, "decompose_auto", **given).args
    assert names == ["background", "foreground-1", "foreground-2"]
    assert [tuple(layer.shape) for layer in layers] == [(2, *SIZE, 4)] * 3
    save = nodes["OmniAlphaSaveLayers"].execute
    for suffix in LAYER_FORMATS:
        made = save(stacks, "sub/made", suffix, "8")
        assert [Path(file).suffix for file in made.args[0]] == [suffix] * 2
    again = save(stacks, "sub/made", ".psd", "16")
    assert again.ui["text"] == ["sub/made_00013.psd", "sub/made_00014.psd"]  # none is overwritten
    assert again.args[0] == [str(tmp_path / "output" / file) for file in again.ui["text"]]
    assert [layer.name for layer in read_stack(again.args[0][0])] == names

    (tmp_path / "output" / "sub" / "made_00001.psd").rename(tmp_path / "input" / "in.psd")
    load = nodes["OmniAlphaLoadLayers"]
    assert inputs_of(load)["file"].more["options"] == ["in.psd"]
    loaded, pictures, read_names = load.execute("in.psd").args
    assert read_names == names and len(loaded) == 1 and load.fingerprint_inputs("in.psd")
    assert torch.allclose(pictures[0], layers[0][:1], atol=1 / 254)

    edited = [layers[0], 1 - layers[1]]
    joined = nodes["OmniAlphaJoinLayers"].execute(layer_1=edited, layer_2=[layers[2][:1]], names=[*names[:2], ""]).args
    assert joined[2] == [*names[:2], "layer 3"] and len(joined[0]) == 2
    assert torch.equal(joined[1][1], edited[1]) and torch.equal(joined[1][2][1], layers[2][0])


def test_completion_takes_a_picture_or_layers(nodes, tiny_model) -> None:
    run = nodes["OmniAlphaComplete"].execute
    layer = torch.cat([PHOTO[:1], MARK[..., None]], -1)
    given = {"prompt": "a quiet street", "steps": 1}
    assert run(tiny_model, "foreground_to_full", foreground=layer, **given).args[0].shape == (1, *SIZE, 4)
    stacks = nodes["OmniAlphaJoinLayers"].execute(layer_1=[layer, layer.flip(2)]).args[0]
    image, _ = run(tiny_model, "foreground_to_background", foregrounds=stacks, **given).args
    assert image.shape == (1, *SIZE, 4)
    with pytest.raises(InputError, match="got foreground and foregrounds together"):
        run(tiny_model, "foreground_to_full", foreground=layer, foregrounds=stacks, **given)
    with pytest.raises(InputError, match="background_to_full has no input 'foreground'"):
        run(tiny_model, "background_to_full", foreground=layer, **given)


def test_pictures_from_text_have_the_size_asked_for(nodes, tiny_model) -> None:
    run = nodes["OmniAlphaGenerate"].execute
    assert run(tiny_model, "text_to_image", prompt="a mug", size="32x16", steps=1).args[0].shape == (1, 16, 32, 4)
    assert run(tiny_model, "text_to_image", prompt="a mug", size="", steps=1).args[1].shape == (1, 32, 32)


@pytest.mark.parametrize(
    ("node", "given", "words"),
    [
        ("OmniAlphaMatte", {"task": "matting_auto", "mask": MARK}, "takes no mask: choose a task that is named"),
        ("OmniAlphaMatte", {"task": "matting_alpha"}, "matting_alpha needs a mask: give one"),
        ("OmniAlphaMatte", {"task": "matting_auto", "prompt": "a cat"}, "takes no text"),
        ("OmniAlphaMatte", {"task": "matting_auto", "steps": 2000}, "steps=2000 is out of range"),
        (
            "OmniAlphaRemove",
            {"task": "removal_rough", "mask": MARK.repeat(3, 1, 1)},
            "composite is a batch of 2, but the pictures are 3",
        ),
        ("OmniAlphaDecompose", {"task": "decompose_alpha", "mask": MARK[:, :8]}, "make them the same size"),
    ],
)
def test_mistakes_are_said_in_a_sentence(nodes, tiny_model, node: str, given: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        nodes[node].execute(tiny_model, composite=PHOTO, **given)


def test_comfyui_shows_progress_and_may_cancel(nodes, tiny_model, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[int, int]] = []

    def stop() -> None:
        if len(shown) == 2:
            raise InterruptedError

    modules = {name: ModuleType(name) for name in ("comfy", "comfy.utils", "comfy.model_management")}
    modules["comfy"].__spec__ = ModuleSpec("comfy", None)
    bar = SimpleNamespace(update_absolute=lambda *step: shown.append(step))
    modules["comfy.utils"].ProgressBar = lambda total: bar
    modules["comfy.model_management"].throw_exception_if_processing_interrupted = stop
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(InterruptedError):
        nodes["OmniAlphaRemove"].execute(tiny_model, "removal_auto", composite=PHOTO, steps=3)
    assert shown == [(1, 3), (2, 3)]


def test_no_file_outside_the_folders_is_touched(nodes, tiny_model, tmp_path: Path) -> None:
    stacks = nodes["OmniAlphaJoinLayers"].execute(layer_1=[PHOTO]).args[0]
    for prefix in ("../out", str(tmp_path / "out"), ""):
        with pytest.raises(InputError, match="leads out of the output folder"):
            nodes["OmniAlphaSaveLayers"].execute(stacks, prefix, ".psd", "8")
    (tmp_path / "secret.psd").write_bytes(b"8BPS")
    with pytest.raises(InputError, match="is no file in ComfyUI's input folder"):
        nodes["OmniAlphaLoadLayers"].execute("../secret.psd")


def test_joined_layers_must_fit(nodes) -> None:
    join = nodes["OmniAlphaJoinLayers"].execute
    for given, words in [
        ({"layer_1": [PHOTO], "layer_2": [PHOTO[:, :8]]}, "layer 2 is 32x8 px, the first layer 32x24"),
        ({"layer_1": [PHOTO], "layer_2": [PHOTO.repeat(2, 1, 1, 1)[:3]]}, "batch of 2, but the pictures are 3"),
        ({"layer_1": [PHOTO], "names": ["a\nb"]}, "there are 2 names for 1 layers"),
    ]:
        with pytest.raises(InputError, match=words):
            join(**given)


@pytest.mark.parametrize("path", sorted((PACKAGE / "workflows").glob("*.json")), ids=lambda path: path.stem)
def test_workflows_name_nodes_and_inputs_that_exist(nodes, path: Path) -> None:
    """In ComfyUI's API form: id -> class_type and inputs, a link being [id, number of the output]."""
    graph = json.loads(path.read_text(encoding="utf-8"))
    core = {"LoadImage": ({"image"}, 2), "SaveImage": ({"images", "filename_prefix"}, 0)}
    known = {id: (set(inputs_of(node)), len(node.define_schema().outputs)) for id, node in nodes.items()} | core
    assert any(step["class_type"] in nodes for step in graph.values())
    for step in graph.values():
        taken, _ = known[step["class_type"]]
        assert set(step["inputs"]) <= taken, step
        links = [value for value in step["inputs"].values() if isinstance(value, list)]
        assert all(number < known[graph[source]["class_type"]][1] for source, number in links)
        if step["class_type"] in nodes:
            slots = inputs_of(nodes[step["class_type"]])
            needed = {id for id, slot in slots.items() if not slot.optional and "default" not in slot.more}
            assert needed <= set(step["inputs"])
            chosen = {id: value for id, value in step["inputs"].items() if "options" in slots[id].more}
            assert all(value in slots[id].more["options"] for id, value in chosen.items())


def test_there_are_workflows_and_a_registry_entry() -> None:
    import tomllib

    assert len(list((PACKAGE / "workflows").glob("*.json"))) == 2
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["version"] == omnialpha.__version__
    assert {"PublisherId", "DisplayName", "Icon", "requires-comfyui"} <= set(project["tool"]["comfy"])
