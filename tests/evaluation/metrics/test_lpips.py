"""LPIPS equals torchmetrics' one on random backbones, and says what is wrong with weights that do not fit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from omnialpha.errors import InputError
from omnialpha.evaluation.metrics.lpips import LPIPS

# torchvision's own tables of the two: widths of convolutions, M for a pool
VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


def backbone(name: str) -> nn.Sequential:
    """torchvision's `features` with random weights that keep the signal's size."""
    layers: list[nn.Module] = []
    if name == "vgg16":
        before = 3
        for width in VGG16:
            if isinstance(width, str):
                layers.append(nn.MaxPool2d(2, 2))
            else:
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
    else:
        layers = [nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(64, 192, 5, padding=2)]
        layers += [nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()]
        layers += [nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(), nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()]
        layers += [nn.MaxPool2d(3, 2)]
    generator = torch.Generator().manual_seed(0)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            fan = layer.weight[0].numel()
            layer.weight.data = torch.randn(layer.weight.shape, generator=generator) * (2 / fan) ** 0.5
            layer.bias.data = torch.randn(layer.bias.shape, generator=generator) * 0.1
    return nn.Sequential(*layers)


@pytest.fixture(scope="module", params=["alexnet", "vgg16"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, nn.Sequential, Path]:
    name, network = request.param, backbone(request.param)
    path = tmp_path_factory.mktemp("weights") / f"{name}.pth"
    state = {f"features.{k}": v for k, v in network.state_dict().items()}
    torch.save(state | {"classifier.1.weight": torch.zeros(2, 2)}, path)  # as in torchvision's file
    return name, network, path


def pair(size: tuple[int, int] = (32, 40), count: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    a = torch.rand(count, 3, *size, generator=generator) * 2 - 1
    return a, (a + 0.2 * torch.randn(a.shape, generator=generator)).clamp(-1, 1)


def test_it_is_what_torchmetrics_computes(
    made: tuple[str, nn.Sequential, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = pytest.importorskip("torchmetrics.functional.image.lpips")
    name, network, path = made
    monkeypatch.setattr(reference, "_get_tv_model_features", lambda net, pretrained: network)
    theirs = reference._LPIPS(net={"alexnet": "alex", "vgg16": "vgg"}[name])
    a, b = pair()
    ours = LPIPS(path)(a, b)
    assert ours.shape == (2,) and float(ours.min()) > 1e-3
    assert torch.allclose(ours, theirs(a, b).flatten(), rtol=1e-5)


def test_a_distance(made: tuple[str, nn.Sequential, Path]) -> None:
    metric = LPIPS(made[2])
    a, b = pair()
    assert metric(a, a).tolist() == [0, 0]
    assert torch.allclose(metric(a, b), metric(b, a))
    assert torch.allclose(metric(a, b)[1:], metric(a[1:], b[1:]), rtol=1e-5)  # a batch changes nothing
    assert bool((metric(a, b) > metric(a, (a + b) / 2)).all())


def test_the_gradient_points_downhill(made: tuple[str, nn.Sequential, Path]) -> None:
    metric = LPIPS(made[2])
    a, b = pair(count=1)
    b.requires_grad_(True)
    before = metric(a, b)
    before.sum().backward()
    assert b.grad is not None and not any(p.grad is not None for p in metric.parameters())
    with torch.no_grad():
        assert float(metric(a, b - 1e-2 * b.grad / b.grad.abs().max())) < float(before)


def test_equal_pictures_have_a_finite_gradient(made: tuple[str, nn.Sequential, Path]) -> None:
    a, _ = pair(count=1)
    b = a.clone().requires_grad_(True)
    LPIPS(made[2])(a, b).sum().backward()
    assert b.grad is not None and bool(b.grad.isfinite().all())


def test_heads_by_path_and_safetensors(tmp_path: Path) -> None:
    network = backbone("alexnet")
    save_file({f"features.{k}": v for k, v in network.state_dict().items()}, tmp_path / "alex.safetensors")
    widths = (64, 192, 384, 256, 256)
    torch.save({f"lin{k}.model.1.weight": torch.ones(1, w, 1, 1) for k, w in enumerate(widths)}, tmp_path / "heads.pth")
    a, b = pair()
    metric = LPIPS(tmp_path / "alex.safetensors", tmp_path / "heads.pth")
    total, x, y = torch.zeros(2), *((v - metric.shift) / metric.scale for v in (a, b))  # type: ignore[operator]
    for index, layer in enumerate(network[:12]):
        x, y = layer(x), layer(y)
        if index in (1, 4, 7, 9, 11):
            u, v = (f / f.norm(dim=1, keepdim=True).clamp_min(1e-4) for f in (x, y))
            total = total + (u - v).square().sum(dim=1).mean(dim=(1, 2))
    assert torch.allclose(metric(a, b), total, rtol=1e-3)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file .*none\.pth"):
        LPIPS(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(InputError, match=r"text\.pth is no state dict"):
        LPIPS(tmp_path / "text.pth")
    (tmp_path / "text.safetensors").write_text("not weights")
    with pytest.raises(InputError, match=r"text\.safetensors is no state dict"):
        LPIPS(tmp_path / "text.safetensors")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(InputError, match="holds a list, not a state dict"):
        LPIPS(tmp_path / "list.pth")
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "resnet.pth")
    with pytest.raises(InputError, match="has no features of VGG16 or AlexNet"):
        LPIPS(tmp_path / "resnet.pth")
    state = {f"features.{k}": v for k, v in backbone("alexnet").state_dict().items()}
    torch.save(state, tmp_path / "alex.pth")
    torch.save({"lin0.model.1.weight": torch.ones(1, 64, 1, 1)}, tmp_path / "heads.pth")
    with pytest.raises(InputError, match=r"heads .*heads\.pth do not fit AlexNet"):
        LPIPS(tmp_path / "alex.pth", tmp_path / "heads.pth")


def test_pictures_that_do_not_fit(made: tuple[str, nn.Sequential, Path]) -> None:
    metric = LPIPS(made[2])
    least = metric.smallest
    small = torch.zeros(1, 3, least, least)
    assert metric(small, small).tolist() == [0]
    with pytest.raises(InputError, match=f"{least} px or more, not 64x{least - 1}"):
        metric(torch.zeros(1, 3, least - 1, 64), torch.zeros(1, 3, least - 1, 64))


def test_without_heads_and_torchmetrics(made: tuple[str, nn.Sequential, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"torchmetrics is not installed: `pip install omnialpha\[eval\]`"):
        LPIPS(made[2])
