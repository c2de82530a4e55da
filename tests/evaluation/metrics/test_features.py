"""Feature extractors come from a file or by name, get 8-bit pictures, and are refused with the reason."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from omnialpha.errors import InputError
from omnialpha.evaluation.metrics.features import load_features

scripts = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


class Inception(nn.Module):
    """Answers as NVIDIA's file does: class scores, unless features are asked for."""

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        if return_features:
            return img.float().mean(dim=[2, 3])
        return torch.zeros(img.shape[0], 1008)


def flat(pictures: Tensor) -> Tensor:
    return pictures.flatten(1)


def whole(pictures: Tensor) -> Tensor:
    return pictures


number = 3


@scripts
def test_a_torchscript_file(tmp_path: Path) -> None:
    torch.jit.script(Inception()).save(tmp_path / "a.pt")
    extract = load_features(str(tmp_path / "a.pt"))
    assert extract.name == "a.pt"
    x = torch.tensor([0.0, 0.4999, 1.2]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    assert extract(x).tolist() == [[0, 127, 255]] * 2
    torch.jit.script(nn.Flatten()).save(tmp_path / "b.pt")
    other = load_features(str(tmp_path / "b.pt"))
    assert other(x).shape == (2, 48) and other.identity != extract.identity


def test_a_function_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    extract = load_features("test_features:flat")
    made = extract(torch.ones(2, 3, 4, 4))
    assert made.dtype == torch.float32 and made.shape == (2, 48) and bool((made == 255).all())
    with pytest.raises(InputError, match=r"test_features:whole answers \(2, 3, 4, 4\)"):
        load_features("test_features:whole")(torch.ones(2, 3, 4, 4))
    for spec, words in (
        ("test_features:missing", "cannot be imported .*missing"),
        ("no_such_package:name", "cannot be imported .*no_such_package"),
        ("test_features:number", "is a int, not a function"),
        ("nowhere.pt", "neither a TorchScript file nor package.module:function"),
    ):
        with pytest.raises(InputError, match=words):
            load_features(spec)


def test_a_file_of_something_else(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "state.pt")
    (tmp_path / "text.pt").write_text("no network")
    for name in ("state.pt", "text.pt"):
        with pytest.raises(InputError, match=f"{name} is no TorchScript file"):
            load_features(str(tmp_path / name))
