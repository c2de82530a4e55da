"""The demo's index.html: one page without scripts or outside resources, in light and dark, that works from a file."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from string import Template
from urllib.parse import quote

from omnialpha.demo.demo_runs import GROUNDS, Entry, Shown
from omnialpha.tasks import TASKS

ON_PHOTOGRAPHS = ("matting", "removal", "decomposition", "completion", "generation")  # what people come for, first
HELD_OUT = "Every task once on layers that nothing was trained on, drawn by this software, beside the true answer."
ABOUT = {
    "generation": "A transparent picture from a text.",
    "completion": "The layer, or the whole picture, that is missing around or behind what is given.",
    "matting": "The subject as a layer with soft alpha: found by itself, or marked by a click, a box, a map or a text.",
    "removal": "The scene without its subject.",
    "decomposition": "The picture as layers, back to front.",
}

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>$title</title>
<style>$style</style>
</head>
<body>
<a class="skip" href="#main">Skip to the pictures</a>
<header>
<h1>$title</h1>
<p>Every output below is one PNG file with alpha, shown on three grounds. Follow a picture to its file.
At a glance: <a href="photographs.png">the photographs</a>, <a href="contact-sheet.png">all of them</a>.</p>
<dl>$facts</dl>
</header>
<nav aria-label="Categories"><ul>$links</ul></nav>
<main id="main">
$sections
</main>
</body>
</html>
""")

STYLE = """
:root { color-scheme: light dark; --paper: #fbfbfc; --card: #fff; --ink: #1b1d22; --muted: #565c67; --rule: #dcdfe5;
  --accent: #1f4fa3; --light: #fff; --dark: #ccc; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14161a; --card: #1d2026; --ink: #eceef2; --muted: #a7adb9; --rule: #343841; --accent: #9cc0ff; }
}
* { box-sizing: border-box; }
html { scroll-padding-top: 4rem; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
header, main, nav ul { max-width: 84rem; margin: 0 auto; padding: 0 1.5rem; }
header { padding-top: 2rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.5rem; margin: 2.5rem 0 0; text-transform: capitalize; }
h3 { font-size: 1.1rem; margin: 1.5rem 0 .5rem; color: var(--muted); font-weight: 600; }
h4 { font-size: 1.05rem; margin: 0; overflow-wrap: anywhere; }
p { margin: .25rem 0; max-width: 46rem; }
a { color: var(--accent); }
a:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.skip { position: absolute; left: -99rem; }
.skip:focus { left: 1rem; top: 1rem; background: var(--card); padding: .5rem 1rem; z-index: 2; }
dl { display: flex; flex-wrap: wrap; gap: .75rem 2rem; margin: 1.25rem 0; }
dt { color: var(--muted); font-size: .85rem; }
dd { margin: 0; font-weight: 600; }
nav { position: sticky; top: 0; z-index: 1; background: var(--paper); border-block: 1px solid var(--rule); }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.5rem; list-style: none; padding-block: .6rem; }
nav a { text-transform: capitalize; }
article { display: grid; grid-template-columns: 15rem minmax(0, 1fr); gap: 1rem 1.5rem; background: var(--card);
  border: 1px solid var(--rule); border-radius: .6rem; padding: 1rem; margin: .75rem 0; }
.told { font-size: .92rem; }
blockquote { margin: .5rem 0; padding-left: .75rem; border-left: 3px solid var(--accent); overflow-wrap: anywhere; }
.muted { color: var(--muted); }
details { font-size: .85rem; margin-top: .5rem; }
summary { cursor: pointer; color: var(--muted); }
details ul { margin: .25rem 0; padding-left: 1.1rem; overflow-wrap: anywhere; }
.groups { display: flex; flex-wrap: wrap; gap: 1rem 1.75rem; align-content: flex-start; }
.group > h5 { font-size: .85rem; font-weight: 600; margin: 0 0 .35rem; color: var(--muted); }
.row { display: flex; flex-wrap: wrap; gap: .5rem; }
figure { margin: 0; width: var(--side); }
.cutout { --side: 19rem; grid-template-columns: minmax(0, 1fr); }
.photo { --side: 11.4rem; }
.layer { --side: 8.5rem; }
figure a { display: block; line-height: 0; }
img { width: 100%; height: auto; border: 1px solid var(--rule); border-radius: .25rem; }
figcaption { font-size: .8rem; color: var(--muted); margin-top: .15rem; }
.on-checkerboard { background: repeating-conic-gradient(#ccc 0 25%, #fff 0 50%) 0 0 / 16px 16px; }
.on-black { background: #000; }
.on-white { background: #fff; }
.on-colour { background: linear-gradient(160deg, #1d976c, #93f9b9); }
@media (max-width: 60rem) { article { grid-template-columns: minmax(0, 1fr); } .photo { --side: 10rem; }
  .cutout { --side: 15rem; } }
@media (max-width: 40rem) { .cutout, .photo, .layer { --side: max(5rem, calc((100vw - 6.5rem) / 3)); } }
@media print { nav, .skip { display: none; } article { break-inside: avoid; } }
"""


def index_page(title: str, facts: dict[str, str], entries: Sequence[Entry]) -> str:
    """The page of all entries; `facts` are shown under the title in order."""
    listed = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items())
    photos, held_out = ([e for e in entries if bool(e.photo) is kind] for kind in (True, False))
    chapters = [(name, name, ABOUT[name], [e for e in photos if e.category == name]) for name in ON_PHOTOGRAPHS]
    chapters.append(("all-tasks", "All tasks, with the truth", HELD_OUT, held_out))
    chapters = [chapter for chapter in chapters if chapter[3]]
    links = "".join(f'<li><a href="#{name}">{escape(heading)}</a></li>' for name, heading, _, _ in chapters)
    sections = "\n".join(_section(*chapter) for chapter in chapters)
    return PAGE.substitute(title=escape(title), style=STYLE, facts=listed, links=links, sections=sections)


def _section(name: str, heading: str, about: str, entries: Sequence[Entry]) -> str:
    parts = [
        f'<section id="{name}" aria-labelledby="{name}-title">',
        f'<h2 id="{name}-title">{escape(heading)}</h2>',
        f"<p>{escape(about)}</p>",
    ]
    articles = [_article(e, "cutout" if e.photo and e.category == "matting" else "") for e in entries]
    return "\n".join([*parts, *articles, "</section>"])


def _article(entry: Entry, kind: str = "") -> str:
    name = f"{entry.photo}: {entry.task}" if entry.photo else entry.task
    heading = escape(name).replace("_", "_<wbr>")  # long names break at their underscores
    told = [f"<h4>{heading}</h4>", f'<p class="muted">{escape(TASKS[entry.task].summary)}</p>']
    told += [f"<blockquote>{escape(entry.instruction)}</blockquote>", f"<p><b>{entry.seconds:.2f} s</b></p>"]
    told += [f'<p class="muted">{escape(entry.note)}</p>'] if entry.note else []
    files = [*(shown.file for shown in entry.outputs), *entry.more, *(s.file for s in (*entry.beside, *entry.inputs))]
    items = "".join(f'<li><a href="{quote(f)}">{escape(f)}</a></li>' for f in dict.fromkeys(files))
    told.append(f"<details><summary>{len(set(files))} files</summary><ul>{items}</ul></details>")
    groups = (
        [_group("Input", [_figure(s, name, "checkerboard", s.label) for s in entry.inputs])] if entry.inputs else []
    )
    grounds = (*GROUNDS, "colour") if kind else GROUNDS
    for shown in entry.outputs:
        groups.append(_group(f"Output: {shown.label}", [_figure(shown, name, g, f"on {g}") for g in grounds]))
    if entry.beside:
        groups.append(
            _group(entry.beside_title.capitalize(), [_figure(s, name, "checkerboard", s.label) for s in entry.beside])
        )
    kind = kind or ("photo" if entry.photo else "layer")
    return (
        f'<article class="{kind}"><div class="told">{"".join(told)}</div>'
        f'<div class="groups">{"".join(groups)}</div></article>'
    )


def _group(title: str, figures: Sequence[str]) -> str:
    return f'<div class="group"><h5>{escape(title)}</h5><div class="row">{"".join(figures)}</div></div>'


def _figure(shown: Shown, name: str, ground: str, caption: str) -> str:
    alt = f"{name}: {shown.label} on {ground}"
    height, width = shown.size
    return (
        f'<figure><a href="{quote(shown.file)}"><img class="on-{ground}" src="{quote(shown.file)}" alt="{escape(alt)}"'
        f' width="{width}" height="{height}" loading="lazy"></a><figcaption>{escape(caption)}</figcaption></figure>'
    )
