"""Two processes that train together, on one machine."""

import os
import subprocess
import sys
import time
from contextlib import ExitStack
from datetime import timedelta
from tempfile import TemporaryFile

import pytest
import torch

# Threads of torch's own now and then abort a process that has done its work and is about to end
END = "\nimport os, sys\nsys.stdout.flush()\nos._exit(0)\n"
LONG = 3600  # seconds: a machine that is busy elsewhere is slow, and no failure


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """What is compared with the two processes sums in their order: how many threads do it depends on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run_two(code, *arguments, **environment):
    """What each of two processes that ran this Python code said; both have ended well, or it fails with that."""
    # they meet at a store of ours, whose port is its own from the start: a free one could be taken before they bind it
    store = torch.distributed.TCPStore(
        "127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=LONG), wait_for_workers=False
    )
    common = {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "OMP_NUM_THREADS": "1",
        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
    }  # fmt: skip
    with ExitStack() as stack:  # a pipe that nobody reads would fill up and hold both
        files = [stack.enter_context(TemporaryFile("w+")) for _ in range(2)]
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", code + END, *map(str, arguments)],
                env=os.environ | common | environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=file, stderr=subprocess.STDOUT, text=True,
            )
            for rank, file in enumerate(files)
        ]  # fmt: skip
        try:
            end = time.monotonic() + LONG
            while None in (ended := [worker.poll() for worker in workers]) and not any(ended):
                assert time.monotonic() < end, "two processes did not end"
                time.sleep(0.1)
        finally:
            for worker in workers:
                worker.kill()
        said = []
        for file in files:
            file.seek(0)
            said.append(file.read())
    assert ended == [0, 0], "\n".join(said)
    return said


def in_this_process(objectives):
    """What a worker's source defines, by name."""
    names = {}
    exec(objectives, names)
    return names


def checkpoint(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)
