"""Puts printed tables into a document: each set of them between two marks of its own, the rest stays as it is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from common.tables import Table
from omnialpha.files import atomic_write


def grown(tables: Sequence[Table], table: Table) -> list[Table]:
    """Tables so far and one more, unless it is one of them, with more rows by now."""
    return [*tables, *([] if any(one is table for one in tables) else [table])]


def write_block(path: Path, name: str, tables: Sequence[Table], command: str) -> None:
    """Put tables and the command that printed them between the marks of `name`, or at the end if it has none."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    body = "\n\n".join(f"{table.markdown()}\n\nPrinted by `{command}`." for table in tables)
    block = f"{begin}\n\n{body}\n\n{end}"
    text = path.read_text(encoding="utf-8")
    marked = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    new, found = marked.subn(lambda _: block, text, count=1)
    atomic_write(path, new if found else f"{text}\n{block}\n")
