"""pymatting's kernels: kept where that is possible, announced where they are compiled, usable after a fork."""

import logging
import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from omnialpha import kernels
from omnialpha.errors import InputError

PHOTO = """
import os, sys, threading
import numpy as np, torch
import omnialpha

photo = np.full((48, 64, 3), 90, np.uint8)
photo[12:36, 16:48] = (200, 60, 30)
torch.set_num_threads(2)
"""


def run(code: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """A process of its own, as it may hang: it has two minutes."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_compiled_code_finds_a_place_and_says_that_it_is_made(tmp_path: Path) -> None:
    """A stand-in for pymatting with one kernel, where neither its folder nor the home can be written."""
    (tmp_path / "pymatting").mkdir()
    (tmp_path / "pymatting/__init__.py").write_text(
        "from numba import njit\n@njit('f8(f8)', cache=True)\ndef twice(x):\n    return 2 * x\n"
        "@njit('f8(f8)', cache=True)\ndef half(x):\n    return x / 2\n"
    )
    code = """
        from numba.core import caching

        def refuse(self):
            raise PermissionError(13, "no", self.get_cache_path())

        for name in dir(caching):
            if "InTree" in name or "UserWide" in name:
                getattr(caching, name).ensure_cache_path = refuse
        from omnialpha import kernels

        kernels.load()
        import numba, pymatting

        print(pymatting.twice(1.5), numba.config.CACHE_DIR, numba.config.THREADING_LAYER)
    """
    place = {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}", "TMPDIR": str(tmp_path)}
    first, second = run(code, **place), run(code, **place)
    assert first.returncode == 0, first.stderr
    assert first.stdout == f"3.0 {tmp_path}/omnialpha-kernels-{os.getuid()} forksafe\n" == second.stdout
    assert first.stderr == f"{kernels.COMPILING}\n" and second.stderr == "", "once"
    assert len(list(tmp_path.glob("omnialpha-kernels-*/*/*.nbi"))) == 2


def test_other_faults_of_an_import_are_not_hidden(tmp_path: Path) -> None:
    (tmp_path / "pymatting").mkdir()
    (tmp_path / "pymatting/__init__.py").write_text("raise RuntimeError('a bug')\n")
    done = run(
        "from omnialpha import kernels; kernels.load()",
        PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}",
    )
    assert done.returncode == 1 and done.stderr.endswith("RuntimeError: a bug\n")


def test_the_folder_for_code_is_nobody_else_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(kernels, "mkdtemp", lambda prefix: str(tmp_path / "fresh"))
    own = kernels.cache_folder()
    assert own.parent == tmp_path and stat.S_IMODE(own.stat().st_mode) == 0o700 and kernels.cache_folder() == own
    own.chmod(0o777)  # somebody may have put code there
    assert kernels.cache_folder() == tmp_path / "fresh"
    own.rmdir()
    own.symlink_to(tmp_path)
    assert kernels.cache_folder() == tmp_path / "fresh"
    monkeypatch.setattr(kernels, "gettempdir", lambda: str(tmp_path / "none"))
    with pytest.raises(InputError, match="set NUMBA_CACHE_DIR"):
        kernels.cache_folder()


def test_quiet_commands_do_not_announce(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from omnialpha.cli.main import app

    logger = logging.getLogger("omnialpha")
    try:
        for extra, heard in ((["--quiet"], False), ([], True)):
            CliRunner().invoke(app, ["matte", "none.png", "-o", str(tmp_path / "out.png"), *extra])
            assert logger.isEnabledFor(logging.WARNING) == heard
    finally:
        logger.setLevel(logging.NOTSET)


def test_refinement_compiles_nothing_after_loading() -> None:
    """So that what `make setup` does is all that is to be done."""
    done = run(
        PHOTO
        + textwrap.dedent("""
        from numba.core import event
        from omnialpha import kernels
        from omnialpha.refine import refine

        kernels.load()
        image = torch.from_numpy(photo).permute(2, 0, 1) / 255
        image = torch.cat([image, torch.ones(1, 48, 64)])
        coarse = torch.zeros(12, 16)
        coarse[3:9, 4:12] = 1
        with event.install_recorder("numba:compile") as heard:
            made = refine(image, coarse)
        print(made.shape, len(heard.buffer))
        """)
    )
    assert done.stdout == "torch.Size([4, 48, 64]) 0\n", done.stderr


@pytest.mark.slow
def test_a_forked_child_works_and_threads_do_not_meet(tiny_model_folder: Path) -> None:
    """torch and numba have run with threads in the parent; its child has none of these, and must not wait for them."""
    done = run(
        PHOTO
        + textwrap.dedent("""
        from dataclasses import replace

        model = omnialpha.load(os.environ["MODEL"], device="cpu")
        model.card = replace(model.card, refine=True)
        big = torch.ones(600, 600)
        (big @ big).sum()  # starts torch's threads
        wanted = model.matte(photo, steps=1)
        assert "pymatting" in sys.modules
        child = os.fork()
        if child == 0:
            os._exit(0 if np.array_equal(model.matte(photo, steps=1), wanted) else 3)
        print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        from omnialpha.refine import foreground

        rgb, alpha = torch.rand(3, 200, 200), torch.rand(200, 200)
        threads = [threading.Thread(target=lambda: [foreground(rgb, alpha) for _ in range(5)]) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print("threads")
        """),
        MODEL=str(tiny_model_folder),
        OMP_NUM_THREADS="2",
    )
    assert done.stdout == "child 0\nthreads\n", (done.returncode, done.stderr[-2000:])


def test_blas_has_one_thread_while_kernels_run() -> None:
    """Threads of BLAS that wait for each other took most of the time of a matte."""
    import numpy as np
    from threadpoolctl import threadpool_info

    def threads() -> list[int]:
        return [row["num_threads"] for row in threadpool_info() if row["user_api"] == "blas"]

    np.ones((2, 2)) @ np.ones((2, 2))
    before = threads()
    with kernels.one_thread():
        assert set(threads()) == {1}
    assert threads()[: len(before)] == before
