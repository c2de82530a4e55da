"""The finder: what a hint changes, what it leaves as it is, and the files that it is read from."""

import importlib.util
import math
import os
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from finders import Red
from omnialpha import io, masks
from omnialpha.errors import InputError
from omnialpha.evaluation.datasets.heldout import draw, open_source
from omnialpha.hints import look, outline
from omnialpha.models import finder as finders
from omnialpha.models.finder import FILES, bundled_finder, hint_of, open_finder
from omnialpha.models.network_files import CONFIG, WEIGHTS
from omnialpha.models.pointer import POINTER
from omnialpha.models.u2net import EXPERT, MEAN, SIDE, STD, SURE, DrawingExpert, U2NetP, prepare, stretched
from omnialpha.tasks import Role

RECIPES = Path(__file__).parents[2] / "recipes"


def tiny(told=0.0, seed=0):
    """A network of random weights whose answers vary, its hint blocks scaled by `told`."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        net = U2NetP(inner=4, width=8, depths=(4, 4, 4))
        for name, value in net.named_parameters():
            if ".add." in name:
                value.copy_(torch.randn_like(value) * told) if told else None  # zeros as they are made
            elif value.ndim > 1:
                nn.init.normal_(value, std=(2 / value[0].numel()) ** 0.5)
    return net.eval().requires_grad_(False)


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def pictures(count, height=40, width=56, seed=0):
    coarse = F.interpolate(rand(count, 3, 5, 7, seed=seed), size=(height, width), mode="bilinear")
    return torch.cat([coarse, torch.ones(count, 1, height, width)], dim=1)


def hint(kind="box", size=(40, 56)):
    return masks.marks(size, boxes=[(10, 8, 20, 16)]) if kind == "box" else masks.marks(size, points=[(12, 10)])


# ---- hints ----------------------------------------------------------------------------------------------------------


def test_no_hint_leaves_the_network_what_it_is():
    x = torch.cat([rand(2, 3, 32, 32), torch.zeros(2, 1, 32, 32)], dim=1)
    silent, loud = tiny()(x), tiny(told=5.0)(x)
    assert torch.equal(silent, loud) and silent.shape == (2, 4, 32, 32) and silent.std() > 0.01
    asked = pictures(2)
    assert torch.equal(tiny(told=5.0).find(asked), tiny().find(asked, torch.zeros(2, 40, 56)))


@pytest.mark.parametrize("kind", ["box", "click"])
def test_blocks_that_hold_nothing_yet_change_nothing(kind):
    asked, marked = pictures(1), hint(kind)[None]
    assert torch.equal(tiny().find(asked, marked), tiny().find(asked))
    changed = tiny(told=0.5).find(asked, marked) - tiny().find(asked)
    assert changed.abs().max() > 1e-3, "blocks that hold something do"


def test_only_the_hinted_of_a_batch_change():
    net, asked = tiny(told=0.5), pictures(3)
    marked = torch.stack([torch.zeros(40, 56), hint(), torch.zeros(40, 56)])
    made, plain = net.find(asked, marked), net.find(asked)
    assert torch.equal(made[[0, 2]], plain[[0, 2]])
    assert (made[1] - plain[1]).abs().max() > 1e-3


def test_where_a_hint_lies_counts_and_its_sign():
    net, asked = tiny(told=0.5), pictures(1)
    here, there = (masks.marks((40, 56), points=[at])[None] for at in ((8, 8), (48, 30)))
    made = [net.find(asked, one) for one in (here, there, -here)]
    assert all((a - b).abs().max() > 1e-4 for a, b in zip(made, [*made[1:], made[0]], strict=True))


def test_what_the_four_maps_say():
    values = torch.tensor([0.0, 0.5, 1.0])
    said = {role: hint_of(role, values).tolist() for role in (Role.ALPHA, Role.TRIMAP, Role.PRECISE, Role.ROUGH)}
    assert said == {
        Role.ALPHA: [-1, 0, 1],
        Role.TRIMAP: [-1, 0, 1],
        Role.PRECISE: [-0.5, 0.25, 1],
        Role.ROUGH: [-1, -0.5, 0],
    }


# ---- pictures -------------------------------------------------------------------------------------------------------


def test_a_mirror_image_is_found_in_mirror_image():
    net, asked, marked = tiny(told=0.5), pictures(1), hint()[None]
    for given in (None, marked):
        turned = net.find(asked.flip(-1), None if given is None else given.flip(-1))
        assert (turned.flip(-1) - net.find(asked, given)).abs().max() < 1e-4
    assert (net.find(asked).flip(-1) - net.find(asked)).abs().max() > 1e-3, "the picture is not symmetric itself"


def test_a_batch_is_its_pictures_one_by_one():
    net, asked, marked = tiny(told=0.5), pictures(3), torch.stack([hint(), torch.zeros(40, 56), hint("click")])
    together = net.find(asked, marked)
    alone = torch.cat([net.find(asked[b : b + 1], marked[b : b + 1]) for b in range(3)])
    assert (together - alone).abs().max() < 1e-5 and (together[0] - together[2]).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (37, 3), (500, 20)])
def test_any_size(size):
    made = tiny(told=0.5).find(pictures(1, *size), torch.ones(1, *size))
    assert made.shape == (1, SIDE, SIDE) and made.isfinite().all() and 0 <= made.min() <= made.max() <= 1


def test_transparent_pictures_are_seen_on_white():
    clear = pictures(1)
    clear[:, 3] = rand(40, 56, seed=3).round()
    clear[:, 0] = torch.where(clear[:, 3] == 0, 0.9, clear[:, 0])  # a colour that nobody sees
    white = torch.cat([clear[:, :3] * clear[:, 3:] + 1 - clear[:, 3:], torch.ones_like(clear[:, 3:])], dim=1)
    assert (tiny().find(clear) - tiny().find(white)).abs().max() < 1e-5
    assert (tiny().find(clear) - tiny().find(pictures(1))).abs().max() > 1e-2


def test_the_brightest_value_is_one_and_imagenet_is_the_norm():
    dark = torch.full((1, 4, 8, 8), 0.25)
    dark[:, 1], dark[:, 3] = 0.5, 1
    made = prepare(dark, 4, MEAN, STD)
    wanted = [(v - m) / s for v, m, s in zip((0.5, 1.0, 0.5), MEAN, STD, strict=True)]
    assert made.shape == (1, 3, 4, 4)
    assert made[0].amax((1, 2)).tolist() == pytest.approx(wanted, abs=1e-5)
    black = torch.zeros(1, 4, 8, 8)
    black[:, 3] = 1
    assert prepare(black, 4, MEAN, STD).isfinite().all()


# ---- drawings -------------------------------------------------------------------------------------------------------


def with_expert(logit):
    """A finder, and its expert whose gate says `logit` of every picture."""
    net = tiny(told=0.5)
    net.expert = DrawingExpert.of(tiny(seed=1)).requires_grad_(False).eval()
    net.expert.gate.weight.zero_()
    net.expert.gate.bias.fill_(logit)
    return net


@pytest.mark.parametrize("looks", [1, 2])
def test_photographs_are_the_published_network_s_and_drawings_the_expert_s(looks):
    (asked,), marked = pictures(1), hint()
    sure = math.log(SURE / (1 - SURE))
    photograph, drawing = (look(with_expert(logit), asked, looks=looks) for logit in (sure - 0.1, sure + 0.1))
    assert torch.equal(photograph, look(tiny(told=0.5), asked, looks=looks)), "as if there were no expert"
    assert torch.equal(drawing, look(with_expert(9.0).expert, asked, looks=looks)) and drawing.shape[0] % 96 == 0
    hinted, alone = (look(net, asked, marked, looks) for net in (with_expert(9.0), tiny(told=0.5)))
    assert torch.equal(hinted, alone), "with a hint there is none"


def test_an_expert_begins_as_the_network_that_it_was_made_of_and_takes_no_hints():
    net = tiny(told=0.5)
    own, asked = DrawingExpert.of(net), pictures(2)
    x = own.read(asked)
    assert x.shape == (2, 4, 96, 96) and (own(x) - net(x)).abs().max() < 1e-4
    assert torch.equal(own.find(asked, torch.ones(2, 40, 56)), own.find(asked))


def test_a_gate_judges_each_picture_by_what_the_encoder_saw():
    own, asked = DrawingExpert.of(tiny()).requires_grad_(False), pictures(3)
    seen = own.encode(own.read(asked))
    wanted = [
        sum(float(row[b].mean((1, 2)) @ own.gate.weight[0, 8 * k : 8 * k + 8]) for k, row in enumerate(seen))
        + float(own.gate.bias)
        for b in range(3)
    ]
    assert own.judge(seen).tolist() == pytest.approx(wanted, abs=1e-4) and len(set(wanted)) == 3


# ---- clicks and boxes to a rough map --------------------------------------------------------------------------------


def red(height=32, width=64):
    """A picture (4, height, width) of a red square on black, and where that is."""
    made = torch.zeros(4, height, width)
    made[0, 8:24, 16:32], made[3] = 1, 1
    return made, made[0] == 1


# ---- the second look ----


def red_square(top: int, bottom: int, left: int, right: int) -> torch.Tensor:
    """Opaque (4, 60, 90), red there and black elsewhere."""
    picture = torch.zeros(4, 60, 90)
    picture[3] = 1
    picture[0, top:bottom, left:right] = 1
    return picture


def test_a_small_subject_is_seen_sharper():
    picture, finder = red_square(20, 41, 50, 71), Red(hints=True)
    true = picture[0]
    first = finder.find(picture[None])[0]
    made = look(finder, picture)
    assert made.shape == (2 * first.shape[0],) * 2 and len(finder.asked) == 3

    def error(found: torch.Tensor) -> float:
        return float((F.interpolate(found[None, None], size=(60, 90), mode="bilinear")[0, 0] - true).abs().mean())

    assert error(made) < 0.7 * error(first)
    assert float(made[:8].max()) == 0 and float(made[:, :16].max()) == 0  # beyond the part, the first look


def test_a_hint_says_where_to_look_first_and_is_cut_as_the_picture_is():
    picture, finder = red_square(20, 41, 50, 71), Red(hints=True)
    hint = torch.where(picture[0] > 0, 1.0, -1.0)
    look(finder, picture, hint)
    assert finder.asked
    for part in finder.asked:  # neither sees what the hint calls background far from the subject
        assert part.shape[1] < 60 and part.shape[2] < 90 and int((part > 0).sum()) == 21 * 21


@pytest.mark.parametrize("square", [(0, 60, 0, 90), (10, 10, 20, 20), (3, 57, 4, 86)], ids=["all", "nothing", "large"])
def test_one_look_is_enough_where_a_second_would_see_the_same(square):
    picture, finder = red_square(*square), Red()
    assert torch.equal(look(finder, picture), Red().find(picture[None])[0]) and len(finder.asked) == 1


def test_an_outline_holds_what_was_found_and_a_little_more(monkeypatch):
    monkeypatch.setattr("finders.SIDE", 64)  # seen twice: 4 % of 128 are 2 to 3 columns of the picture, 1 to 2 rows
    picture, there = red()
    finder = Red(hints=True)
    made = outline(finder, picture, [], [(4, 2, 40, 28)])
    assert made.shape == (32, 64) and made.unique().tolist() == [0, 1]
    assert made[there].all() and there.sum() == 16 * 16 and 320 < made.sum() <= 19 * 21
    assert int((finder.asked[0] > -1).sum()) == 40 * 28


class Loud:
    """Sees what is brightest in a picture, and nothing else."""

    hints, expert = True, None

    def __init__(self) -> None:
        self.asked: list[torch.Tensor | None] = []

    def find(self, pictures: torch.Tensor, hints: torch.Tensor | None = None, mirror: bool = True) -> torch.Tensor:
        self.asked.append(hints)
        seen = F.interpolate(pictures[:, :1], size=(32, 32), mode="area")[:, 0]
        return (seen > 0.8 * seen.amax()).float()


def test_a_click_is_followed_to_what_is_not_the_most_striking():
    """A bright square and a dim one: the whole picture shows the first, a part around the click the second."""
    picture = red_square(10, 30, 5, 25)
    picture[0, 30:50, 60:80] = 0.5
    finder = Loud()
    for x, y, rows, columns in ((70, 40, slice(30, 50), slice(60, 80)), (15, 20, slice(10, 30), slice(5, 25))):
        made = outline(finder, picture, [(x, y)], [])
        assert made[rows, columns].mean() > 0.9 and made.sum() < 1.6 * 20 * 20
    assert finder.asked == [None] * len(finder.asked) and len(finder.asked) > 2
    both = outline(finder, picture, [(70, 40), (15, 20)], [])
    assert both[30:50, 60:80].mean() > 0.9 and both[10:30, 5:25].mean() > 0.9


def test_a_click_keeps_what_hangs_together_with_it():
    picture = red_square(10, 30, 5, 25)
    picture[0, 30:50, 60:80] = 1
    assert look(Red(), picture).amax() == 1
    made = outline(Red(), picture, [(70, 40)], [])
    assert made[30:50, 60:80].mean() > 0.9 and not made[:, :40].any()


def test_clicks_that_say_no_and_clicks_on_nothing_become_a_hint():
    picture, _ = red()
    for points in ([(20, 12), (30, 20, False)], [(50, 16)]):
        finder = Red(hints=True)
        outline(finder, picture, points, [])
        assert any(hint is not None for hint in finder.asked)


def test_what_is_marked_as_background_is_no_part_of_an_outline():
    picture, there = red()
    made = outline(Red(), picture, [], [(0, 0, 24, 32)])
    assert not made[:, 24:].any() and made[there & (torch.arange(64) < 24)].all()
    made = outline(Red(), picture, [(20, 12), (30, 20, False)], [])
    assert made[12, 20] == 1 and made[20, 30] == 0


def test_a_click_counts_even_where_nothing_was_found_and_nothing_at_all_is_said():
    picture, _ = red()
    assert outline(Red(), picture, [(50, 16)], [])[16, 50] == 1
    with pytest.raises(InputError, match="nothing was found where the marks are"):
        outline(Red(), picture * 0.1, [], [(40, 4, 10, 10)])


# ---- folders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_save_and_open_are_inverse(dtype, tmp_path):
    net = tiny(told=0.5)
    net.save(tmp_path / "own", dtype)
    back = open_finder(str(tmp_path / "own"))
    assert isinstance(back, U2NetP) and back.hints and back.config == net.config
    assert not back.training and not any(p.requires_grad for p in back.parameters())
    for name, value in net.state_dict().items():
        assert torch.equal(back.state_dict()[name], value.to(dtype).float()), name
    assert (back.find(pictures(1)) - net.find(pictures(1))).abs().max() < (0.005 if dtype is torch.float16 else 1e-5)


def test_an_expert_is_saved_with_its_finder(tmp_path):
    net = with_expert(0.5)
    net.save(tmp_path, torch.float32)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([CONFIG, WEIGHTS, EXPERT])
    back = open_finder(tmp_path)
    assert isinstance(back.expert, DrawingExpert) and back.expert.gate.bias.item() == 0.5 and not back.expert.training
    assert not any("told" in name for name in back.expert.state_dict())
    assert torch.equal(back.expert.find(pictures(1)), net.expert.find(pictures(1)))
    (tmp_path / EXPERT / WEIGHTS).write_bytes(b"")
    with pytest.raises(InputError, match="the finder in .*expert cannot be read"):
        open_finder(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (WEIGHTS, None),
        (WEIGHTS, b""),
        (WEIGHTS, b"\x10" * 50),
        (CONFIG, b"{"),
        (CONFIG, b"\xff\xfe"),
        (CONFIG, b"[]"),
        (CONFIG, b"{}"),
        (CONFIG, b'{"inner": 4, "width": 8, "depths": null}'),
        (CONFIG, b'{"inner": 4, "width": 16, "depths": [4, 4, 4]}'),
    ],
)
def test_a_damaged_folder_is_named(name, content, tmp_path):
    tiny().save(tmp_path)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    with pytest.raises(
        InputError, match=f"the finder in .*{tmp_path.name} cannot be read .*get the model again"
    ) as said:
        open_finder(tmp_path)
    assert "\n" not in str(said.value) and len(str(said.value)) < 300


def test_what_is_no_finder(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for place in (tmp_path, tmp_path / "nothing", tmp_path / "notes.txt", tmp_path / "missing.onnx"):
        with pytest.raises(InputError, match=f"{place.name} is no finder: give an .onnx file, or a folder with"):
            open_finder(place)


# ---- ONNX files -----------------------------------------------------------------------------------------------------


@pytest.fixture
def onnx_file(tmp_path):
    """Writes a graph that answers its picture's first channel; side: of the input, a name leaves it open."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")

    def write(name, side):
        helper, kind = onnx.helper, onnx.TensorProto.FLOAT
        pick = helper.make_tensor("first", onnx.TensorProto.INT64, [1], [0])
        node = helper.make_node("Gather", ["photo", "first"], ["alpha"], axis=1)
        given = helper.make_tensor_value_info("photo", kind, [1, 3, side, side])
        made = helper.make_tensor_value_info("alpha", kind, [1, 1, side, side])
        model = helper.make_model(
            helper.make_graph([node], "g", [given], [made], [pick]), opset_imports=[helper.make_opsetid("", 13)]
        )
        model.ir_version = 8
        onnx.save(model, tmp_path / name)
        return tmp_path / name

    return write


@pytest.mark.parametrize("name", ["u2net", *FILES, "ISNet-general-use", "birefnet-portrait"])
def test_a_file_is_read_as_its_name_says(onnx_file, name):
    row = {"u2net": (MEAN, STD, False), "ISNet-general-use": FILES["isnet"], "birefnet-portrait": FILES["birefnet"]}
    mean, std, logits = row.get(name) or FILES[name]
    finder, asked = open_finder(onnx_file(f"{name}.onnx", 24)), pictures(2)
    assert (tuple(finder.mean), tuple(finder.std), finder.logits) == (tuple(mean), tuple(std), logits)
    assert not finder.hints and finder.side == 24
    seen = prepare(asked, 24, mean, std)[:, 0]
    made = finder.find(asked, torch.ones(2, 40, 56))
    assert (made - stretched(seen.sigmoid() if logits else seen)).abs().max() < 1e-5
    assert made.amin((1, 2)).tolist() == [0, 0] and made.amax((1, 2)).tolist() == pytest.approx([1, 1])


def test_a_file_that_leaves_its_size_open_is_run_at_1024(onnx_file):
    finder = open_finder(onnx_file("any.onnx", "side"))
    assert finder.side == 1024 and finder.find(pictures(1)).shape == (1, 1024, 1024)


def test_a_file_that_is_no_graph(tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "u2net.onnx").write_bytes(b"no graph" * 20)
    with pytest.raises(InputError, match=r"u2net\.onnx is not an ONNX file that can be run .*download it again"):
        open_finder(tmp_path / "u2net.onnx")


def test_without_onnxruntime_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "u2net.onnx").write_bytes(b"")
    with pytest.raises(InputError, match=r"u2net\.onnx needs onnxruntime: pip install omnialpha\[onnx\]"):
        open_finder(tmp_path / "u2net.onnx")


@pytest.mark.slow
def test_the_published_file_is_converted_exactly():
    """Needs the file, which U2NETP_ONNX names."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    source = os.environ.get("U2NETP_ONNX") or pytest.skip("U2NETP_ONNX names no file")
    spec = importlib.util.spec_from_file_location("u2netp_recipe", RECIPES / "u2netp.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    x = (rand(1, 3, SIDE, SIDE) - 0.5) * 4
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    wanted = torch.cat(
        [torch.from_numpy(one) for one in session.run(None, {session.get_inputs()[0].name: x.numpy()})], 1
    )
    with torch.no_grad():
        made = recipe.convert(Path(source)).eval()(torch.cat([x, torch.zeros(1, 1, SIDE, SIDE)], dim=1)).sigmoid()
    assert made.shape == wanted.shape == (1, 7, SIDE, SIDE)
    assert (made - wanted).abs().max() < 1e-4


# ---- the bundled one ------------------------------------------------------------------------------------------------


def test_the_bundled_finder_is_small():
    net = bundled_finder()
    assert isinstance(net, U2NetP) and net.hints and bundled_finder() is net
    folder = Path(finders.__file__).parents[1] / "weights" / "nano" / finders.FINDER
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, EXPERT, WEIGHTS, POINTER]
    assert (folder / WEIGHTS).stat().st_size <= 3 * 2**20


def test_the_bundled_expert_sees_drawings_and_leaves_photographs_alone():
    from skimage import data

    expert = bundled_finder().expert
    for photo in (data.coffee(), data.chelsea(), data.astronaut(), data.rocket()):
        assert not expert.suits(io.to_rgba(Image.fromarray(photo)))
    held = draw(open_source(), 12, (96, 96), seed=3)
    assert all(expert.suits(picture) for picture in held.composite)
    found, published = (
        torch.cat([F.interpolate(made[None, None], size=(96, 96), mode="area")[:, 0] for made in maps])
        for maps in ([look(bundled_finder(), one) for one in held.composite], bundled_finder().find(held.composite))
    )
    off, before = ((made - held.target[:, 3]).abs().mean() for made in (found, published))
    assert off < 0.05 and off < 0.7 * before, (off, before)


def test_the_bundled_finder_sees_the_cup():
    from skimage import data

    photo = io.to_rgba(Image.fromarray(data.coffee()))
    found = bundled_finder().find(photo[None])
    alpha = F.interpolate(found[None], size=photo.shape[1:], mode="bilinear")[0, 0]
    assert alpha.shape == (400, 600) and alpha[150, 270] > 0.9
    assert max(alpha[y, x] for y in (0, -1) for x in (0, -1)) < 0.1
