// The stage of the studio: shows layers, takes marks. Pixels that count are on the server; these are to look at.
const find = query => element.querySelector(query), all = query => [...element.querySelectorAll(query)];
const canvas = find("canvas"), pen = canvas.getContext("2d"), sheet = find(".sheet");
const COLOURS = {1: "#14c38e", 0.5: "#f5b700", 0: "#e5484d"};
const images = new Map();
const view = {scale: 1, x: 0, y: 0, fitted: true};
let scene = {}, layers = [], drawn = [], size = null, split = null, ground = "checks", own = null, guide = null;
let tool = {tool: "move"}, action = null, asked = 0, waiting = false, cursor = null;

// ---- what the server says ----
function update() {
  const next = props.value || {};
  if (next.load) drawn = next.load;
  const same = next.run && next.run === scene.run;
  if (next.layers && !same) {
    layers = next.layers.map((one, layer) => ({...one, layer, visible: true, opacity: 1}));
    if (next.run) split = null;
  }
  const picture = JSON.stringify([next.before, next.size]);
  if (picture !== JSON.stringify([scene.before, scene.size]) || !size) [view.fitted, split] = [true, null];
  const before = JSON.stringify(scene.request);
  scene = next;
  size = scene.size;
  if (scene.guide || !drawn.some(one => one.kind !== "stroke")) guide = scene.guide || null;
  if (!fits(tool.tool)) pick(find("[data-tool=move]"));
  if (before !== JSON.stringify(scene.request) || next.load) outline();
  report();
  panel();
  bar();
  redraw();
}
function report() {
  props.value = {...props.value, load: null, drawn};
}
function image(url) {
  if (!images.has(url)) {
    const made = new Image();
    made.onload = redraw;
    made.src = url;
    images.set(url, made);
  }
  return images.get(url);
}
async function outline() {
  const marks = drawn.filter(one => one.kind !== "stroke"), number = ++asked;
  guide = marks.length ? guide : scene.guide || null;
  if (!marks.length) return redraw();
  const made = await server.outline({...scene.request, drawn: marks});
  if (number !== asked) return;
  guide = made.url || null;
  trouble(made.error);
  redraw();
}
function trouble(words) {
  find(".hint").textContent = words || "";
  find(".hint").classList.toggle("bad", Boolean(words));
}

// ---- drawing ----
function redraw() {
  if (!waiting) requestAnimationFrame(draw);
  waiting = true;
}
function known(url) {
  const one = image(url);
  return one.complete && one.naturalWidth ? one : null;
}
function draw() {
  waiting = false;
  const width = sheet.clientWidth, height = sheet.clientHeight, ratio = window.devicePixelRatio;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  const first = layers.length && known(layers[0].url);
  const shape = size || (first ? [first.naturalHeight, first.naturalWidth] : null);
  if (!shape) return;
  const [h, w] = shape;
  if (view.fitted) {
    view.scale = Math.min((width - 24) / w, (height - 24) / h);
    view.x = (width - w * view.scale) / 2;
    view.y = (height - h * view.scale) / 2;
  }
  const [x, y, s] = [view.x, view.y, view.scale];
  pen.save();
  pen.beginPath();
  pen.rect(x, y, w * s, h * s);
  pen.clip();
  backdrop(x, y, w * s, h * s);
  pen.imageSmoothingEnabled = s < 3;
  const place = one => pen.drawImage(one, x, y, w * s, h * s);
  const before = (scene.before || []).map(known).filter(Boolean);
  if (layers.length) {
    for (const layer of layers) {
      const one = layer.visible && known(layer.url);
      pen.globalAlpha = layer.opacity;
      if (one) place(one);
    }
    pen.globalAlpha = 1;
    if (split !== null && before.length) {
      pen.save();
      pen.beginPath();
      pen.rect(x, y, w * s * split, h * s);
      pen.clip();
      backdrop(x, y, w * s, h * s);
      before.forEach(place);
      pen.restore();
      line(x + w * s * split, y, h * s);
    }
  } else {
    before.forEach(place);
  }
  if (!layers.length || tool.tool !== "move") marks(x, y, s, w, h, place);
  pen.restore();
  if (cursor && tool.tool === "brush") circle(cursor[0], cursor[1], radius() * s, COLOURS[tool.level]);
}
function backdrop(x, y, w, h) {
  pen.fillStyle = ground === "black" ? "#000" : "#fff";
  pen.fillRect(x, y, w, h);
  if (ground === "own" && own) {
    const scale = Math.max(w / own.naturalWidth, h / own.naturalHeight);
    const [a, b] = [own.naturalWidth * scale, own.naturalHeight * scale];
    pen.drawImage(own, x + (w - a) / 2, y + (h - b) / 2, a, b);
  } else if (ground === "checks") {
    pen.fillStyle = "#cfd2d8";
    for (let row = 0; row * 10 < h; row++)
      for (let column = row % 2; column * 10 < w; column += 2) pen.fillRect(x + column * 10, y + row * 10, 10, 10);
  }
}
function line(x, y, h) {
  pen.fillStyle = "#fff";
  pen.fillRect(x - 1, y, 2, h);
  pen.beginPath();
  pen.arc(x, y + h / 2, 13, 0, 7);
  pen.fill();
  pen.fillStyle = "#222";
  pen.font = "14px system-ui";
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.fillText("↔", x, y + h / 2);
}
function circle(x, y, r, colour) {
  pen.beginPath();
  pen.arc(x, y, Math.max(r, 1), 0, 7);
  pen.strokeStyle = "#fff";
  pen.lineWidth = 3;
  pen.stroke();
  pen.strokeStyle = colour;
  pen.lineWidth = 1.5;
  pen.stroke();
}
function marks(x, y, s, w, h, place) {
  if (guide && known(guide)) place(known(guide));
  const strokes = drawn.filter(one => one.kind === "stroke");
  if (strokes.length) {
    const sheet = new OffscreenCanvas(canvas.width, canvas.height), brush = sheet.getContext("2d");
    brush.setTransform(pen.getTransform());
    brush.lineCap = brush.lineJoin = "round";
    for (const one of strokes) {
      brush.strokeStyle = COLOURS[one.level];
      brush.lineWidth = 2 * one.radius * s;
      brush.beginPath();
      one.path.forEach(([a, b]) => brush.lineTo(x + a * s, y + b * s));
      if (one.path.length === 1) brush.lineTo(x + one.path[0][0] * s + 0.01, y + one.path[0][1] * s);
      brush.stroke();
    }
    pen.save();
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.globalAlpha = 0.55;
    pen.drawImage(sheet, 0, 0);
    pen.restore();
  }
  for (const one of drawn) {
    const colour = one.subject ? COLOURS[1] : COLOURS[0];
    if (one.kind === "point") {
      const [a, b] = [x + one.at[0] * s, y + one.at[1] * s];
      pen.beginPath();
      pen.arc(a, b, 8, 0, 7);
      pen.fillStyle = colour;
      pen.fill();
      pen.strokeStyle = "#fff";
      pen.lineWidth = 2;
      pen.stroke();
      pen.beginPath();
      pen.moveTo(a - 4, b);
      pen.lineTo(a + 4, b);
      if (one.subject) {
        pen.moveTo(a, b - 4);
        pen.lineTo(a, b + 4);
      }
      pen.stroke();
    } else if (one.kind === "box") {
      const [a, b, c, d] = one.at;
      for (const [style, wide] of [["#fff", 4], [colour, 2]]) {
        pen.strokeStyle = style;
        pen.lineWidth = wide;
        pen.strokeRect(x + a * s, y + b * s, c * s, d * s);
      }
    }
  }
}

// ---- the bars and the panel ----
function fits(name) {
  return (scene.tools || []).includes(name) || name === "move";
}
function radius() {
  return (Number(find(".size input").value) / 100) ** 2 * Math.max(...(size || [100, 100])) * 0.2 + 0.5;
}
function bar() {
  const levels = find(".levels"), wanted = JSON.stringify(fits("brush") ? scene.levels : []);
  if (levels.dataset.shown !== wanted) {
    levels.dataset.shown = wanted;
    levels.replaceChildren(...JSON.parse(wanted || "[]").map(([name, level]) => {
      const made = document.createElement("button"), dot = document.createElement("i");
      made.dataset.tool = "brush";
      made.dataset.level = level;
      made.title = "Brush: " + name.toLowerCase();
      dot.style.background = COLOURS[level];
      made.append(dot, name);
      return made;
    }));
  }
  all("[data-tool]").forEach(one => one.hidden = !fits(one.dataset.tool));
  const marking = (scene.tools || []).length > 0;
  all(".undo, .clear").forEach(one => one.hidden = !marking);
  find(".size").hidden = tool.tool !== "brush";
  const size = scene.size && scene.before && scene.before.length;
  find(".compare").disabled = !(layers.length && size);
  find(".compare").setAttribute("aria-pressed", split !== null);
  all("[data-ground]").forEach(one => one.setAttribute("aria-pressed", one.dataset.ground === ground));
  const running = scene.progress;
  find(".progress").hidden = !running;
  if (running) {
    find(".progress span").textContent = running.words;
    find(".progress i").style.width = (running.total ? 100 * running.step / running.total : 0) + "%";
  }
  if (!find(".hint").classList.contains("bad")) find(".hint").textContent = layers.length ? "" : scene.hint || "";
}
function panel() {
  find("aside").hidden = !scene.run;
  if (!scene.run) return;
  find(".notes").textContent = (scene.notes || []).join(" · ");
  const choose = find(".save select");
  if (!choose.options.length) choose.append(...scene.forms.map(([form, name]) => new Option(name, form)));
  const rows = layers.map((layer, index) => {
    const row = document.createElement("li");
    const button = (words, title, act, off) => {
      const made = document.createElement("button");
      [made.textContent, made.title, made.disabled] = [words, title, off];
      made.onclick = () => { act(); panel(); redraw(); };
      return made;
    };
    const eye = button(layer.visible ? "◉" : "○", layer.visible ? "Hide" : "Show",
      () => layer.visible = !layer.visible, false);
    eye.className = "eye";
    const small = document.createElement("img"), name = document.createElement("b");
    small.src = layer.url;
    name.textContent = layer.name;
    const swap = by => [layers[index], layers[index + by]] = [layers[index + by], layers[index]];
    const up = button("▲", "Further to the front", () => swap(1), index === layers.length - 1);
    const down = button("▼", "Further to the back", () => swap(-1), index === 0);
    const range = document.createElement("input"), share = document.createElement("output");
    [range.type, range.max, range.value, range.title] = ["range", 100, Math.round(layer.opacity * 100), "Opacity"];
    share.textContent = range.value + "%";
    range.oninput = () => {
      layer.opacity = range.value / 100;
      share.textContent = range.value + "%";
      redraw();
    };
    const slide = document.createElement("span");
    slide.append(range, share);
    row.classList.toggle("off", !layer.visible);
    row.append(eye, small, name, up, down, slide);
    return row;
  });
  find("aside ol").replaceChildren(...rows.reverse());
}
function pick(button) {
  if (!button) return;
  tool = {tool: button.dataset.tool, subject: button.dataset.subject === "1", level: Number(button.dataset.level)};
  all("[data-tool]").forEach(one => one.setAttribute("aria-pressed", one === button));
  canvas.style.cursor = tool.tool === "move" ? "grab" : tool.tool === "brush" ? "none" : "crosshair";
  bar();
  redraw();
}
find(".tools").addEventListener("click", event => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.tool) return pick(button);
  drawn = button.classList.contains("undo") ? drawn.slice(0, -1) : [];
  trouble("");
  report();
  outline();
});
find(".view").addEventListener("click", event => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.ground) ground = button.dataset.ground;
  if (button.classList.contains("compare")) split = split === null ? 0.5 : null;
  if (button.classList.contains("fit")) view.fitted = true;
  if (button.classList.contains("whole")) zoom(1 / window.devicePixelRatio, sheet.clientWidth / 2, sheet.clientHeight / 2);
  bar();
  redraw();
});
find(".own input").addEventListener("change", event => {
  own = new Image();
  own.onload = redraw;
  own.src = URL.createObjectURL(event.target.files[0]);
  ground = "own";
  bar();
});
find(".download").addEventListener("click", async event => {
  event.target.disabled = true;
  const shown = layers.map(({layer, visible, opacity}) => ({layer, visible, opacity}));
  const made = await server.download({run: scene.run, panel: shown, form: find(".save select").value})
    .finally(() => event.target.disabled = false);
  find(".trouble").textContent = made.error || "";
  if (made.error) return;
  const link = document.createElement("a");
  [link.href, link.download] = [made.url, made.name];
  link.click();
});

// ---- the pointer ----
function zoom(scale, x, y) {
  const wanted = Math.min(Math.max(scale, 0.02), 40), factor = wanted / view.scale;
  [view.x, view.y, view.scale, view.fitted] = [x - (x - view.x) * factor, y - (y - view.y) * factor, wanted, false];
  redraw();
}
function at(event) {
  const box = canvas.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}
function inside([x, y]) {
  const [h, w] = size, round = value => Math.round(value * 10) / 10;
  return [round(Math.min(Math.max((x - view.x) / view.scale, 0), w - 1)),
    round(Math.min(Math.max((y - view.y) / view.scale, 0), h - 1))];
}
canvas.addEventListener("wheel", event => {
  event.preventDefault();
  zoom(view.scale * 1.0015 ** -event.deltaY, ...at(event));
}, {passive: false});
canvas.addEventListener("pointerdown", event => {
  if (!size && !layers.length) return;
  canvas.setPointerCapture(event.pointerId);
  const [x, y] = at(event), moving = tool.tool === "move" || event.button === 1 || !size;
  const edge = split === null || !size ? null : view.x + size[1] * view.scale * split;
  if (edge !== null && Math.abs(x - edge) < 16) action = {kind: "split"};
  else if (moving) action = {kind: "move", x: x - view.x, y: y - view.y};
  else if (tool.tool === "point") drawn.push({kind: "point", at: inside([x, y]), subject: tool.subject && !event.altKey});
  else if (tool.tool === "box") {
    action = {kind: "box", from: inside([x, y])};
    drawn.push({kind: "box", at: [...action.from, 0, 0], subject: tool.subject});
  } else {
    action = {kind: "stroke"};
    drawn.push({kind: "stroke", level: tool.level, radius: radius(), path: [inside([x, y])]});
  }
  if (tool.tool === "point" && !moving && !action) finish();
  redraw();
});
canvas.addEventListener("pointermove", event => {
  const [x, y] = cursor = at(event), last = drawn[drawn.length - 1];
  if (action && action.kind === "split") split = Math.min(Math.max((x - view.x) / (size[1] * view.scale), 0), 1);
  if (action && action.kind === "move") [view.x, view.y, view.fitted] = [x - action.x, y - action.y, false];
  if (action && action.kind === "stroke") last.path.push(inside([x, y]));
  if (action && action.kind === "box") {
    const [a, b] = inside([x, y]), [c, d] = action.from;
    last.at = [Math.min(a, c), Math.min(b, d), Math.abs(a - c), Math.abs(b - d)];
  }
  redraw();
});
canvas.addEventListener("pointerup", () => {
  const kind = action && action.kind, last = drawn[drawn.length - 1];
  action = null;
  if (kind === "box" && (last.at[2] < 2 || last.at[3] < 2)) drawn.pop();
  if (kind === "box" || kind === "stroke") finish();
});
canvas.addEventListener("pointerleave", () => { cursor = null; redraw(); });
function finish() {
  drawn = [...drawn];
  report();
  outline();
}

// ---- a file that is dropped on the stage goes where it would have been chosen ----
sheet.addEventListener("dragover", event => event.preventDefault());
sheet.addEventListener("drop", async event => {
  event.preventDefault();
  const files = event.dataTransfer.files, place = document.querySelector("#" + scene.first);
  if (!files.length || !place) return;
  const clear = place.querySelector("button[aria-label='Clear'], button[title='Clear']");
  if (clear) clear.click();
  for (let tries = 0; tries < 20 && !place.querySelector("input[type=file]"); tries++)
    await new Promise(done => setTimeout(done, 50));
  const input = place.querySelector("input[type=file]"), list = new DataTransfer();
  if (!input) return;
  list.items.add(files[0]);
  input.files = list.files;
  input.dispatchEvent(new Event("change", {bubbles: true}));
});

new ResizeObserver(redraw).observe(sheet);
watch("value", update);
update();
