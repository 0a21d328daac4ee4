// Shows an image of a series before and after, side by side at a divider, or their
// difference. Stored values come as they are; window and colours are made here.
const root = document.getElementById("compare");
const { series } = root.dataset;
const el = (id) => document.getElementById(id);
const canvas = el("picture");
const context = canvas.getContext("2d");
const kept = new Map(); // the last pictures, by address
const mostKept = 48;
let before = null;
let after = null;
let center = 0;
let width = 0;
let held = false;
let asked = 0;

async function load(which, image, frame) {
  const address = `/api/series/${encodeURIComponent(series)}/instances/${image}/pixels?which=${which}&frame=${frame}`;
  if (kept.has(address)) return kept.get(address);
  const answer = await fetch(address, { signal: AbortSignal.timeout(20000) });
  if (!answer.ok) {
    const said = await answer.json();
    throw new Error(`${which}: ${said.error}`);
  }
  const head = (name) => answer.headers.get(`Denoised-${name}`);
  const bytes = await answer.arrayBuffer();
  const view = new DataView(bytes);
  const signed = head("Signed") === "true";
  const values = new Float32Array(bytes.byteLength / 2);
  for (let i = 0; i < values.length; i++) {
    values[i] = signed ? view.getInt16(2 * i, true) : view.getUint16(2 * i, true);
  }
  const picture = { columns: Number(head("Columns")), rows: Number(head("Rows")), inverse: head("Inverse") === "true", window: head("Window"), remark: decodeURIComponent(head("Remark") ?? ""), values };
  kept.set(address, picture);
  if (kept.size > mostKept) kept.delete(kept.keys().next().value);
  return picture;
}

// The window of the object, or from its least to its greatest value.
function firstWindow(picture) {
  if (picture.window) {
    [center, width] = picture.window.split(" ").map(Number);
    return;
  }
  let least = Infinity;
  let most = -Infinity;
  for (const v of picture.values) {
    least = Math.min(least, v);
    most = Math.max(most, v);
  }
  center = (least + most) / 2;
  width = Math.max(1, most - least);
}

function paint() {
  if (!before) return;
  const { columns, rows, inverse } = before;
  canvas.width = columns;
  canvas.height = rows;
  const picture = context.createImageData(columns, rows);
  const split = held ? columns : (columns * Number(el("divider").value)) / 100;
  const low = center - width / 2;
  const gain = (255 * Number(el("gain").value)) / width;
  const difference = el("difference").checked && after && !held;
  for (let i = 0; i < before.values.length; i++) {
    const at = 4 * i;
    picture.data[at + 3] = 255;
    if (difference) { // grey: the same; what was taken off bright, what was added dark
      picture.data.fill(128 + gain * (before.values[i] - after.values[i]), at, at + 3);
      continue;
    }
    const from = after && i % columns >= split ? after : before;
    const shade = (255 * (from.values[i] - low)) / width;
    picture.data.fill(inverse ? 255 - shade : shade, at, at + 3);
  }
  context.putImageData(picture, 0, 0);
  if (!difference && after && !held) {
    context.fillStyle = "#e0a000";
    context.fillRect(Math.round(split), 0, 1, rows);
  }
  el("window").textContent = `${Math.round(center)} / ${Math.round(width)}`;
}

// What there is to say about the picture, and why the image is not the plain result
// of its method, if it is not.
function say(text) {
  const remark = after?.remark ? `${el("which").value} is not the plain result: ${after.remark}` : "";
  el("said").textContent = [text, remark].filter(Boolean).join(" · ");
}

async function show() {
  const turn = ++asked;
  const image = Number(el("image").value);
  const frame = el("frame") ? Number(el("frame").value) : 1;
  el("at").textContent = image;
  if (el("frameAt")) el("frameAt").textContent = frame;
  const which = el("which").value;
  try {
    const left = await load("original", image, frame);
    let right = null;
    let trouble = "";
    try {
      right = await load(which, image, frame);
      if (right.values.length !== left.values.length) throw new Error(`${which}: has another size`);
    } catch (error) {
      right = null;
      trouble = `${error.message}: only the original is shown`;
    }
    if (turn !== asked) return; // another image was asked for meanwhile
    if (width === 0) firstWindow(left);
    before = left;
    after = right;
    say(trouble);
    paint();
  } catch (error) {
    if (turn === asked) el("said").textContent = error.message;
  }
}

function step(by) {
  const input = el("image");
  input.value = Number(input.value) + by;
  show();
}

for (const id of ["image", "frame", "which"]) el(id)?.addEventListener("input", show);
for (const id of ["divider", "difference", "gain"]) el(id).addEventListener("input", paint);
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  step(Math.sign(event.deltaY));
}, { passive: false });
canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
canvas.addEventListener("pointermove", (event) => {
  if (event.buttons) {
    width = Math.max(1, width * (1 + event.movementX / 200));
    center += (event.movementY * width) / 400;
    paint();
    return;
  }
  if (!before) return;
  const x = Math.floor((event.offsetX * before.columns) / canvas.clientWidth);
  const y = Math.floor((event.offsetY * before.rows) / canvas.clientHeight);
  const i = y * before.columns + x;
  if (x >= 0 && x < before.columns && i >= 0 && i < before.values.length) {
    say(`${x}, ${y}: ${before.values[i]}${after ? ` → ${after.values[i]}` : ""}`);
  }
});
document.addEventListener("keydown", (event) => {
  if (event.target.matches("input, select")) return;
  if (event.key === "ArrowDown" || event.key === "ArrowRight") step(1);
  else if (event.key === "ArrowUp" || event.key === "ArrowLeft") step(-1);
  else if (event.key === " ") held = true;
  else if (event.key === "d") el("difference").checked = !el("difference").checked;
  else return;
  event.preventDefault();
  paint();
});
document.addEventListener("keyup", (event) => {
  if (event.key !== " ") return;
  held = false;
  paint();
});
show();
