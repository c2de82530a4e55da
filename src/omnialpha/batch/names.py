"""The name of each output: that of its input, in a format that can hold the result, never one for two inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath

from omnialpha.io import FORMATS


class Names:
    """Outputs by the names of inputs, both relative with `/`. Names differ by more than upper and lower case.

    Args:
        alpha: Whether the format has to hold transparency.
        suffix: Of every output; None is the input's own where that can hold the result, and else .png.
        stacks: Whether outputs are folders of layers.
        earlier: Those of earlier runs, which stand.
    """

    def __init__(self, alpha: bool, suffix: str | None, stacks: bool, earlier: Mapping[str, str]) -> None:
        self.alpha, self.suffix, self.stacks = alpha, suffix, stacks
        self.outputs: dict[str, str] = {}
        self.owners: dict[str, str] = {}  # of an output in lower case
        self.folders: set[str] = set()  # that mirror folders of inputs, in lower case
        self.earlier = {name: output for name, output in earlier.items() if self._suits(name, output)}
        for name, output in self.earlier.items():
            self._take(name, output)

    def add(self, names: Iterable[str]) -> list[str]:
        """Name the outputs of more inputs. Returns what is to be said of those that could not get the plain name."""
        new = sorted(name for name in names if name not in self.outputs)
        self.folders |= {str(parent).lower() for name in new for parent in PurePosixPath(name).parents}
        said, plain = [], {name: next(self._candidates(name)) for name in new}
        for name in sorted(new, key=lambda name: plain[name] != name):  # who keeps its own name comes first
            output = next(one for one in self._candidates(name) if self._free(one))
            if output != plain[name]:
                other = self.owners.get(plain[name].lower())
                reason = f"is that of {other}" if other else "is a folder's"
                said.append(f"{name} becomes {output}, as {plain[name]} {reason}")
            self._take(name, output)
        return said

    def changed(self, names: Iterable[str]) -> int:
        """How many of them are not written in the format of the input, which has no room for the result."""
        if self.stacks or self.suffix:
            return 0
        return sum(PurePosixPath(name).suffix.lower() != self._ending(name) for name in names)

    def _suits(self, name: str, output: str) -> bool:
        return self.stacks or PurePosixPath(output).suffix.lower() == self._ending(name)

    def _ending(self, name: str) -> str:
        """The suffix of an output, in lower case."""
        own = PurePosixPath(name).suffix.lower()
        fits = own in FORMATS and (FORMATS[own].alpha or not self.alpha)
        return "" if self.stacks else self.suffix or (own if fits else ".png")

    def _candidates(self, name: str) -> Iterator[str]:
        """`a.png`, `a-jpg.png`, `a-jpg-2.png` and so on, of a.jpg. A folder of the name of an output gets another."""
        path, ending = PurePosixPath(name), self._ending(name)
        parent = PurePosixPath()
        for part in path.parent.parts:
            while str(parent / part).lower() in self.owners:
                part += "-folder"
            parent = parent / part
        ending = path.suffix if ending == path.suffix.lower() else ending
        stem = path.stem + path.suffix.replace(".", "-")
        yield str(parent / (path.stem + ending))
        yield str(parent / (stem + ending))
        for number in range(2, len(self.owners) + len(self.folders) + 4):
            yield str(parent / f"{stem}-{number}{ending}")

    def _free(self, output: str) -> bool:
        return output.lower() not in self.owners and output.lower() not in self.folders | RESERVED

    def _take(self, name: str, output: str) -> None:
        self.outputs[name] = output
        self.owners[output.lower()] = name


RESERVED = {"report.jsonl"}
