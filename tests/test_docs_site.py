"""The site of the docs: it builds, every link leads somewhere, and it loads nothing of anybody else's."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_site_builds_without_a_broken_link_or_a_foreign_file(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path / "site")]
    done = subprocess.run(
        build, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 40
    foreign = re.compile(r"<(?:script|img|link)[^>]+(?:src|href)=\"https?://(?!localhost)[^\"]+\"")
    loaded = {found for page in pages for found in foreign.findall(page.read_text(encoding="utf-8"))}
    assert not {tag for tag in loaded if "canonical" not in tag}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_of_pages_outside_the_site_lead_somewhere(name: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / name).read_text(encoding="utf-8"))
    assert links and not [link for link in links if not (ROOT / link).exists()]
