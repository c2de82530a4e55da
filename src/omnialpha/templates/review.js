const slot = "omnialpha-review/" + data.run;
const verdicts = {...data.decided, ...stored(slot)};  // "" is one that was taken back
const articles = new Map();
let current = null;

// ---- what is shown ----
function element(name, text, values) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  return Object.assign(made, values);
}
function figure(card, [label, file]) {
  const made = element("figure"), image = element("img", "", {
    loading: "lazy", decoding: "async", width: card.size[0], height: card.size[1], alt: card.id + ": " + label, src: file,
  });
  if (label === "foreground") image.className = "on-checkerboard";
  made.append(image, element("figcaption", label === "difference" ? label + " × " + data.amplified : label));
  return made;
}
function figures(scores) {
  return Object.entries(scores).map(([name, value]) => name + " " + (value === null ? "-" : value.toPrecision(4)));
}
function article(card) {
  const made = element("article"), top = element("div", "", {className: "top"}), buttons = element("p");
  for (const [verdict, text] of [["accept", "Accept"], ["reject", "Reject"]]) {
    const button = element("button", text, {type: "button"});
    button.dataset.verdict = verdict;
    button.addEventListener("click", () => {
      choose(card, false);
      decide(card, verdicts[card.id] === verdict ? "" : verdict);
    });
    buttons.append(button, " ");
  }
  top.append(element("h3", card.id), buttons);
  const line = element("p", [card.source, card.licence, ...figures(card.scores)].filter(Boolean).join(" · "),
    {className: "muted"});
  if (card.near) line.prepend(element("span", "near the cut", {className: "tie"}), " · ");
  const row = element("div", "", {className: "row"});
  row.append(...card.pictures.map(picture => figure(card, picture)));
  const words = card.words.map(([label, text]) => {
    const said = element("p", "", {className: "words"});
    said.append(element("span", label + " ", {className: "muted"}), text);
    return said;
  });
  made.append(top, line, row, ...words);
  made.addEventListener("click", () => choose(card, false));
  return made;
}
function show(card) {
  const made = articles.get(card.id), verdict = verdicts[card.id] || "";
  made.dataset.verdict = verdict;
  for (const button of made.querySelectorAll("button"))
    button.setAttribute("aria-pressed", button.dataset.verdict === verdict);
}
function count() {
  const of = verdict => data.cards.filter(card => (verdicts[card.id] || "") === verdict).length;
  at("state").textContent = of("accept") + " accepted, " + of("reject") + " rejected, " + of("") + " undecided";
}

// ---- what is decided ----
function choose(card, scroll) {
  if (current) articles.get(current.id).removeAttribute("aria-current");
  current = card;
  const made = articles.get(card.id);
  made.setAttribute("aria-current", "true");
  if (scroll) made.scrollIntoView({block: "start"});
}
function decide(card, verdict) {
  verdicts[card.id] = verdict;
  store(slot, verdicts);
  show(card);
  count();
}
function step(by) {
  const shown = data.cards.filter(card => !articles.get(card.id).hidden);
  const next = shown[current ? shown.indexOf(current) + by : 0];
  if (next) choose(next, true);
}
function filter() {
  const wanted = {all: () => true, undecided: card => !verdicts[card.id], near: card => card.near}[at("filter").value];
  for (const card of data.cards) articles.get(card.id).hidden = !wanted(card);
  const first = data.cards.find(card => !articles.get(card.id).hidden);
  if (first) choose(first, false);
}
function result() {
  const decided = data.cards.filter(card => verdicts[card.id]);
  const by = value => Object.fromEntries(decided.map(card => [card.id, value(card)]));
  return {format: data.format, version: data.version, run: data.run, decisions: by(card => verdicts[card.id]),
    marks: by(card => card.mark)};
}

// ---- what is pressed ----
const KEYS = {a: "accept", r: "reject", u: ""};
const STEPS = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1};
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.target === at("filter")) return;
  if (event.key in STEPS) step(STEPS[event.key]);
  else if (event.key in KEYS && current && !event.repeat) {
    decide(current, KEYS[event.key]);
    if (KEYS[event.key]) step(1);
  } else return;
  event.preventDefault();
});
at("filter").addEventListener("change", filter);
at("save").addEventListener("click", () => download("decisions.json", result()));

let above = true;
for (const card of data.cards) {
  if (above && data.cut !== null && !(card.score <= data.cut)) {
    above = false;
    at("cards").append(element("p", "cut at " + data.cut.toPrecision(6), {className: "cut"}));
  }
  const made = article(card);
  articles.set(card.id, made);
  at("cards").append(made);
  show(card);
}
count();
filter();
