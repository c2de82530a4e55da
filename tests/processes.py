"""Two processes that train together, on one machine."""

import os
import socket
import subprocess
import sys

import torch

# Threads of torch's own now and then abort a process that has done its work and is about to end
END = "\nimport os, sys\nsys.stdout.flush()\nos._exit(0)\n"


def run_two(code, *arguments, **environment):
    """What each of two processes that ran this Python code said; both have ended well, or it fails with that."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code + END, *map(str, arguments)],
            env=os.environ | common | environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = []
    try:
        for worker in workers:
            said.append(worker.communicate(timeout=900)[0])
            assert worker.returncode == 0, said[-1]
    finally:
        for worker in workers:
            worker.kill()
    return said


def in_this_process(objectives):
    """What a worker's source defines, by name."""
    names = {}
    exec(objectives, names)
    return names


def checkpoint(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)
