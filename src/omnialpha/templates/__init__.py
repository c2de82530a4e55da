"""The pages and texts that this package writes: Jinja2 templates in this folder, with their styles and scripts."""

from __future__ import annotations

from typing import Any


def render(name: str, **values: Any) -> str:
    """Fill a template of this folder. Text is escaped, so that no value becomes markup.

    Args:
        name: its file, such as `report.html`; styles and scripts that it includes become a part of it.
        values: what it refers to; one that is missing raises.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    pages = Environment(
        loader=PackageLoader("omnialpha", "templates"),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return pages.get_template(name).render(values)
