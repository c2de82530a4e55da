"""API keys: a file of names and SHA-256 hashes, so that nobody who reads it can use a key.

A line is `name sha256 [credits]`; `#` begins a comment. Keys have 256 random bits, for which a plain hash is enough.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from threading import Lock

from omnialpha.errors import InputError
from omnialpha.files import atomic_write
from omnialpha.server.refusals import Refusal

NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class ApiKey:
    """A key by its hash. credits: jobs that it may start while the server runs; None: any number."""

    name: str
    digest: str
    credits: int | None = None


class ApiKeys:
    """The keys of a file, and what they have used."""

    def __init__(self, rows: list[ApiKey]) -> None:
        self.rows, self.used, self._lock = rows, Counter[str](), Lock()

    @classmethod
    def read(cls, path: Path) -> ApiKeys:
        """Read a file of keys. InputError where it cannot be read or a line is none."""
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"the file of keys {path} cannot be read ({error}); make one with --add-key NAME."
            ) from error
        rows = []
        for number, line in enumerate(lines, 1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            if not re.fullmatch(r"\S+ [0-9a-f]{64}( \d{1,12})?", " ".join(words)) or not NAME.fullmatch(words[0]):
                raise InputError(
                    f"line {number} of {path} is no key: write NAME SHA256 [CREDITS], or use --add-key NAME."
                )
            rows.append(ApiKey(words[0], words[1], int(words[2]) if len(words) == 3 else None))
        if not rows:
            raise InputError(f"{path} holds no keys, so that nobody could use the server: add one with --add-key NAME.")
        return cls(rows)

    def find(self, given: str | None) -> ApiKey:
        """The row of a key that a client sent. Every row is compared, each in constant time."""
        if not given:
            raise Refusal("unauthorized", "no API key was given: send it as `X-Api-Key` or `Authorization: Bearer`.")
        digest = sha256(given.encode("utf-8", "surrogateescape")).hexdigest()
        found = [row for row in self.rows if hmac.compare_digest(row.digest, digest)]
        if not found:
            raise Refusal("forbidden", "the API key is not known: check it, or ask for one.")
        return found[0]

    def spend(self, key: ApiKey, count: int = 1) -> None:
        """Count jobs of a key; Refusal where it has no credits left."""
        with self._lock:
            if key.credits is not None and self.used[key.name] + count > key.credits:
                raise Refusal(
                    "insufficient_credits", f"the {key.credits} credits of this key are used up: ask for more."
                )
            self.used[key.name] += count

    def give_back(self, key: ApiKey, count: int = 1) -> None:
        """Take back what a refused job cost."""
        with self._lock:
            self.used[key.name] -= count


def add_key(path: Path, name: str, credits: int | None = None) -> str:
    """Add a new key to a file, which is made where there is none.

    Returns:
        The key, which is written nowhere.

    Raises:
        InputError: The name is none, or taken, or the file cannot be written.
    """
    if not NAME.fullmatch(name):
        raise InputError(f"{name!r} is no name of a key: use up to 64 letters, digits, dots and dashes.")
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if any(line.split()[:1] == [name] for line in text.splitlines()):
        raise InputError(f"{path} has a key {name!r} already: choose another name, or delete its line.")
    key = secrets.token_urlsafe(32)
    line = " ".join([name, sha256(key.encode()).hexdigest(), *([] if credits is None else [str(credits)])])
    atomic_write(path, f"{text.rstrip()}\n{line}\n".lstrip())
    path.chmod(0o600)
    return key
