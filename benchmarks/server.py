"""Load on a server: requests a second, how long answers take, and what its memory does, over time.

`python benchmarks/server.py --minutes 10` starts `omnialpha serve` with the bundled model and sends it cut-outs from 16
clients; `--task removal_auto --steps 1` something else, `--url` asks a server that is there. Its memory is read from
its own figures.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from common.tables import Table, save
from common.timing import surroundings
from PIL import Image

from omnialpha.client import Client
from omnialpha.errors import InputError

CPU = "process_cpu_seconds_total"


def picture(seed: int, side: int) -> bytes:
    """A JPEG of a soft disk on a gradient."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side] / side
    inside = np.clip((0.3 - np.hypot(rows - rng.uniform(0.4, 0.6), columns - rng.uniform(0.4, 0.6))) * 20, 0, 1)
    ground = np.stack([rows, columns, np.full_like(rows, rng.random())], -1)
    pixels = ground * (1 - inside[..., None]) + rng.random(3) * inside[..., None]
    buffer = io.BytesIO()
    Image.fromarray((pixels * 255).astype(np.uint8)).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


@contextmanager
def server(arguments: list[str]) -> Iterator[str]:
    """The address of a server that is started for this, and ended after it."""
    command = [sys.executable, "-m", "omnialpha", "serve", "--port", "0", "--jobs-per-key", "1000", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        line = next((row for row in process.stderr if "http://" in row), "")
        threading.Thread(target=lambda: [None for _ in process.stderr or ()], daemon=True).start()
        url = line.split()[-1]
        while not _ready(url):
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def memory(url: str) -> float:
    """Megabytes that the server's process holds."""
    return figure(url, "process_resident_memory_bytes") / 1e6


def figure(url: str, name: str) -> float:
    """A figure of the server."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        match = re.search(rf"^{name} (\S+)", answer.read().decode(), re.M)
    return float(match[1]) if match else float("nan")


def ask_until(
    end: float, url: str, number: int, given: argparse.Namespace, times: list[float], errors: Counter[str]
) -> None:
    """One client: a request after the other, each until its result is there."""
    client, options = Client(url, given.key), {"steps": given.steps} if given.steps else {}
    while time.monotonic() < end:
        data, began = picture(number + len(times) % 97, given.side), time.perf_counter()
        try:
            job = client.submit(given.task, composite=data, **options).wait()
            job.result()
            job.cancel()
            times.append(time.perf_counter() - began)
        except InputError as error:
            errors[str(error)[:60]] += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=0.5)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--side", type=int, default=256, help="of the pictures, in pixels")
    parser.add_argument("--task", default="matting_auto")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--url", help="of a server that is there")
    parser.add_argument("--key")
    parser.add_argument("--json", type=Path, help="write the table here")
    parser.add_argument("serve", nargs="*", help="after --: options of omnialpha serve")
    given = parser.parse_args()

    @contextmanager
    def there() -> Iterator[str]:
        yield given.url

    with there() if given.url else server(given.serve) as url:
        Client(url, given.key).run(given.task, composite=picture(0, given.side))  # what is compiled is compiled now
        began, first, worked = time.monotonic(), memory(url), figure(url, CPU)
        times, errors = list[float](), Counter[str]()
        end = began + 60 * given.minutes
        threads = [
            threading.Thread(target=ask_until, args=(end, url, number, given, times, errors))
            for number in range(given.clients)
        ]
        for thread in threads:
            thread.start()
        half = first
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.5)
            half = memory(url) if time.monotonic() < began + 30 * given.minutes else half
        seconds, last, worked = time.monotonic() - began, memory(url), figure(url, CPU) - worked
    where = surroundings(torch.device("cpu"), torch.float32)
    about = f"{given.clients} clients, {given.side} px, {given.minutes:g} min, {where}"
    columns = {"task": "", "n": "d", "1/s": ".2f", "p50 s": ".2f", "p95 s": ".2f", "CPU s each": ".2f", "errors": "d"}
    columns |= {"MB at start": ".0f", "half-way": ".0f", "at end": ".0f"}
    p50, p95 = np.percentile(times, [50, 95]) if times else (float("nan"), float("nan"))
    row = [
        given.task,
        len(times),
        len(times) / seconds,
        float(p50),
        float(p95),
        worked / max(len(times), 1),
        sum(errors.values()),
        first,
        half,
        last,
    ]
    table = Table("Load on a server", about, columns, [row])
    table.notes += [f"{count} x {words}" for words, count in errors.items()]
    print(table.text())
    if given.json:
        save([table], {k: str(v) for k, v in vars(given).items() if k != "key"}, given.json, None)


if __name__ == "__main__":
    main()
