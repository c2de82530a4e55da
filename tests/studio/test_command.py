"""`omnialpha studio` before a page is open."""

import socket
from pathlib import Path

import pytest

from omnialpha.cli import studio as command
from omnialpha.cli.options import Options
from omnialpha.errors import InputError


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs gradio.*omnialpha\[studio\]"):
        command.studio(Options(), "127.0.0.1", 0)


def test_a_port_that_is_taken_is_a_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"--port {port} cannot be used"):
            command.studio(Options(device="cpu"), "127.0.0.1", port, tmp_path / "runs")


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--folder .* cannot be used"):
        command.studio(Options(device="cpu"), "127.0.0.1", 0, tmp_path / "file")
