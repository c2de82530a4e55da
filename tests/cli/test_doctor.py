"""What `omnialpha doctor` finds beside the model: see test_cli for the command itself."""

import importlib.metadata

import pytest

from omnialpha.cli import doctor
from omnialpha.errors import InputError
from omnialpha.models.checkpoints.hub import Record


def test_stored_models_are_listed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMNIALPHA_HOME", str(tmp_path))
    assert doctor.cache() == {"home": str(tmp_path), "stored": []}
    doctor.show(doctor.cache())
    assert capsys.readouterr().out.splitlines()[1] == "stored        none"
    for name, verified in (("one", {"a.safetensors": "sha256:0"}), ("two", {})):
        folder = tmp_path / "models" / f"me--{name}" / "main"
        folder.mkdir(parents=True)
        (folder / "a.safetensors").write_bytes(bytes(2**20 * 52))
        Record(f"me/{name}", "main", "0", "mit", ["a.safetensors"], verified).write(folder)
    assert doctor.cache()["stored"] == ["me/one@main (0.1 GiB)", "me/two@main (0.1 GiB, not finished)"]


def test_machine_and_back_ends():
    found = doctor.machine()
    assert 0 < found["free_gib"] <= found["memory_gib"]
    assert "native" in doctor.attention("cpu") and "xformers" not in doctor.attention("cpu")
    with pytest.raises(InputError, match="gpu"):
        doctor.attention("gpu")


def test_packages_of_quantisation(monkeypatch):
    def version(name):
        if name != "torchao":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.2"

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert doctor.quantization() == {
        "int8": "torchao 1.2",
        "fp8": "torchao 1.2",
        "nf4": "pip install omnialpha[quant] for bitsandbytes",
        "gguf": "pip install omnialpha[quant] for gguf",
    }
