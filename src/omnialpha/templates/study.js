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

const slot = () => "omnialpha-study/" + data.study + "/" + annotator;
const keep = () => store(slot(), answers);

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
const save = () =>
  download("study-" + data.study + "-" + annotator.replace(/[^\p{L}\p{N}]+/gu, "-") + ".json", result());

// ---- what is pressed ----
const KEYS = {ArrowLeft: "left", 1: "left", ArrowDown: "tie", 2: "tie", ArrowRight: "right", 3: "right"};
at("intro").addEventListener("submit", event => {
  event.preventDefault();
  annotator = at("name").value.normalize().trim().replace(/\s+/g, " ");
  if (!annotator) return;
  questions = draw(annotator);
  const known = stored(slot());
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
