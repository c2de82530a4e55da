"""The page of a human study: one HTML file with its script, no outside resources, and pictures beside it."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from omnialpha.evaluation.reports.report import STYLE

FORMAT, VERSION = "omnialpha study result", 1


def page(title: str, data: dict[str, Any]) -> str:
    """data: what SCRIPT reads, see `study.build`."""
    told = json.dumps(data | {"format": FORMAT, "version": VERSION}, ensure_ascii=False)
    held = told.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    parts = {"@title@": escape(title), "@style@": STYLE + MORE_STYLE, "@script@": SCRIPT, "@data@": held}
    made = PAGE
    for name, text in parts.items():  # the data last, as nothing in it may be replaced
        made = made.replace(name, text)
    return made


MORE_STYLE = """
[hidden] { display: none !important; }
header { display: flex; flex-wrap: wrap; justify-content: space-between; align-items: baseline; gap: .5rem 2rem;
  padding-top: 1rem; }
h1 { font-size: 1.15rem; margin: 0; }
main { padding-bottom: 3rem; }
button, input { font: inherit; color: inherit; }
button { background: var(--card); border: 1px solid var(--muted); border-radius: .5rem; padding: .6rem 1.1rem;
  cursor: pointer; }
button:hover, button[aria-pressed=true] { border-color: var(--accent); box-shadow: inset 0 0 0 1px var(--accent); }
button.plain { border: 0; background: none; color: var(--accent); padding: .3rem; text-decoration: underline; }
button:disabled { visibility: hidden; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
input { background: var(--card); border: 1px solid var(--muted); border-radius: .5rem; padding: .6rem; width: 20rem;
  max-width: 100%; }
label { display: block; margin: 1rem 0 .25rem; font-weight: 600; }
progress { width: 12rem; accent-color: var(--accent); vertical-align: middle; }
kbd { font: .85em ui-monospace, monospace; border: 1px solid var(--rule); border-radius: .25rem; padding: 0 .3em;
  color: var(--muted); margin-left: .4em; }
#intro { max-width: 44rem; }
#tools { margin-top: 1.5rem; }
#question { font-size: 1.1rem; font-weight: 600; margin: 1rem 0 .75rem; max-width: 60rem; }
#question:focus { outline: none; }
#text { white-space: pre-wrap; overflow-wrap: anywhere; max-width: 60rem; }
.choices { display: grid; grid-template-columns: 1fr auto 1fr; gap: .75rem; }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 1.5rem; margin-top: 1rem; }
.sides:has(#given:not([hidden])) { grid-template-columns: 1fr minmax(8rem, .6fr) 1fr; }
#given { order: 1; } #right-side { order: 2; }
.sides h2 { font-size: 1rem; margin: 0 0 .25rem; color: var(--muted); font-weight: 600; }
.sides > section { text-align: center; min-width: 0; }
.sides .row { justify-content: center; }
.sides img { max-width: 100%; max-height: 62vh; min-width: min(16rem, 100%); height: auto; object-fit: contain; }
.sides #given img { min-width: 0; }
@media (max-width: 40rem) { .sides, .sides:has(#given:not([hidden])) { grid-template-columns: 1fr 1fr; }
  #given { order: 3; grid-column: 1 / -1; } .choices button { padding: .6rem .3rem; } .sides { gap: .5rem; }
  kbd { display: none; } }
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>@title@</title>
<style>@style@</style>
</head>
<body>
<header><h1>@title@</h1>
<p id="state" hidden><progress id="bar" value="0" aria-label="Answered"></progress> <span id="done"></span></p></header>
<main>
<noscript><p>This page needs JavaScript, which your browser has turned off.</p></noscript>
<form id="intro">
<p>You will see two results for the same request, side by side, and are asked which is better. Take the side that is
better for the question that is asked; where neither is clearly ahead, say so. There are no right answers.</p>
<p>Sides are mixed anew for every pair. You can stop at any time and go on later in the same browser.
Nothing leaves your computer: at the end you save a file, and send it to whoever asked you.</p>
<p><kbd>←</kbd> or <kbd>1</kbd> left, <kbd>↓</kbd> or <kbd>2</kbd> no difference, <kbd>→</kbd> or <kbd>3</kbd> right,
<kbd>Backspace</kbd> or <kbd>↑</kbd> one back.</p>
<label for="name">Your name, or any word that only you use</label>
<input id="name" required maxlength="100" autocomplete="off">
<button>Start</button>
</form>
<div id="task" hidden>
<p id="text"></p>
<p id="question" tabindex="-1" aria-live="polite"></p>
<div class="choices" role="group" aria-labelledby="question">
<button data-choice="left">Left<kbd>← 1</kbd></button>
<button data-choice="tie">No difference<kbd>↓ 2</kbd></button>
<button data-choice="right">Right<kbd>→ 3</kbd></button>
</div>
<div class="sides"><section aria-label="Left result"><h2>Left</h2><div class="row" id="left"></div></section>
<section id="right-side" aria-label="Right result"><h2>Right</h2><div class="row" id="right"></div></section>
<section id="given" aria-label="Given"><h2>Given</h2><div class="row" id="pictures"></div></section></div>
</div>
<div id="end" hidden>
<h2 id="thanks" tabindex="-1">That was all, thank you</h2>
<p>Save the file, and send it to whoever asked you.</p>
</div>
<p id="tools" hidden><button class="plain" id="back">One back</button>
<button id="save">Save my answers</button></p>
<p id="warning" role="alert"></p>
</main>
<script type="application/json" id="data">@data@</script>
<script>@script@</script>
</body>
</html>
"""

SCRIPT = """
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = id => document.getElementById(id);
let annotator = "", questions = [], answers = {}, place = 0;

// ---- chance: one order and one choice of sides for each study and annotator ----
function seed(text) {  // FNV-1a
  let hash = 2166136261;
  for (const byte of new TextEncoder().encode(text)) hash = Math.imul(hash ^ byte, 16777619);
  return hash >>> 0;
}
function chance(state) {  // mulberry32
  return () => {
    state = (state + 0x6D2B79F5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}
function draw(name) {
  const next = chance(seed(data.study + "/" + name));
  const samples = data.samples.map(sample => ({sample, left: next() < .5 ? 0 : 1}));
  for (let last = samples.length - 1; last > 0; last--) {
    const other = Math.floor(next() * (last + 1));
    [samples[last], samples[other]] = [samples[other], samples[last]];
  }
  return samples.flatMap(({sample, left}) => sample.aspects.map(aspect => ({sample, left, aspect})));
}

// ---- what is kept in the browser ----
const slot = () => "omnialpha-study/" + data.study + "/" + annotator;
function load() {
  try {
    return JSON.parse(localStorage.getItem(slot())) || {};
  } catch {
    return {};
  }
}
function keep() {
  try {
    localStorage.setItem(slot(), JSON.stringify(answers));
  } catch {
    at("warning").textContent = "This browser keeps nothing: save your answers before you close the page.";
  }
}

// ---- what is shown ----
const key = question => question.sample.id + "/" + question.aspect;
function figures(parent, pictures, what) {
  parent.replaceChildren(...pictures.map(([label, file, width, height]) => {
    const figure = document.createElement("figure"), image = document.createElement("img");
    Object.assign(image, {src: file, width, height, alt: what + ": " + label});
    figure.append(image);
    if (pictures.length > 1 || what === "Given") {
      const caption = document.createElement("figcaption");
      caption.textContent = label;
      figure.append(caption);
    }
    return figure;
  }));
}
function show(focus) {
  const over = place >= questions.length, count = Object.keys(answers).length;
  at("task").hidden = over;
  at("end").hidden = !over;
  at("bar").max = questions.length;
  at("bar").value = count;
  at("done").textContent = count + " of " + questions.length + " answered";
  at("back").disabled = place === 0;
  if (over) {
    at("thanks").focus();
    return;
  }
  const {sample, left, aspect} = questions[place];
  at("text").textContent = sample.text;
  at("question").textContent = data.questions[aspect];
  figures(at("left"), sample.results[left], "Left result");
  figures(at("right"), sample.results[1 - left], "Right result");
  figures(at("pictures"), sample.given, "Given");
  at("given").hidden = !sample.given.length;
  for (const button of document.querySelectorAll("[data-choice]"))
    button.setAttribute("aria-pressed", answers[key(questions[place])] === button.dataset.choice);
  if (focus) at("question").focus();
  const next = questions.slice(place + 1).find(other => other.sample !== sample);
  for (const [, file] of next ? [...next.sample.results.flat(), ...next.sample.given] : []) new Image().src = file;
}
function answer(choice) {
  if (at("task").hidden) return;
  answers[key(questions[place])] = choice;
  keep();
  place += 1;
  show(false);
}
function back() {
  if (place === 0) return;
  place -= 1;
  show(true);
}
function result() {
  const made = questions.filter(question => answers[key(question)]).map(question => ({
    sample: question.sample.id, aspect: question.aspect, left: question.left, choice: answers[key(question)],
  }));
  return {format: data.format, version: data.version, study: data.study, annotator, answers: made};
}
function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(result(), null, 1) + "\\n"], {type: "application/json"}));
  link.download = "study-" + data.study + "-" + annotator.replace(/[^\\p{L}\\p{N}]+/gu, "-") + ".json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// ---- what is pressed ----
const KEYS = {ArrowLeft: "left", 1: "left", ArrowDown: "tie", 2: "tie", ArrowRight: "right", 3: "right"};
at("intro").addEventListener("submit", event => {
  event.preventDefault();
  annotator = at("name").value.normalize().trim().replace(/\\s+/g, " ");
  if (!annotator) return;
  questions = draw(annotator);
  const known = load();
  answers = Object.fromEntries(questions.map(key).filter(name => known[name]).map(name => [name, known[name]]));
  place = questions.findIndex(question => !answers[key(question)]);
  if (place < 0) place = questions.length;
  at("intro").hidden = true;
  at("tools").hidden = at("state").hidden = false;
  keep();
  show(true);
});
document.addEventListener("keydown", event => {
  if (!at("intro").hidden || event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
  if (event.key === "Backspace" || event.key === "ArrowUp") back();
  else if (KEYS[event.key]) answer(KEYS[event.key]);
  else return;
  event.preventDefault();
});
for (const button of document.querySelectorAll("[data-choice]"))
  button.addEventListener("click", () => answer(button.dataset.choice));
at("back").addEventListener("click", back);
at("save").addEventListener("click", save);
"""
