"use strict";
// The picture with its overlays, the player and the facts of the current frame.
// Other scripts follow the current frame by `stc.onFrame(callback)` and set it by `stc.go(index)`.
const stc = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const frames = data.frames;
  const listeners = [];
  const byId = (id) => document.getElementById(id);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const percent = (x) => (100 * x < 9.95 ? (100 * x).toFixed(1) : Math.round(100 * x)) + " %";
  const duration = (s) => (s < 1 ? (1000 * s).toPrecision(3) + " ms" : s.toPrecision(3) + " s");
  const api = { data, frames, colour, percent, duration, index: 0, go, onFrame: (f) => listeners.push(f) };
  if (!frames.length) return api;

  const canvas = byId("picture"), slider = byId("slider"), play = byId("play");
  const layers = { encoded: byId("layer-encoded"), dropped: byId("layer-dropped"), grid: byId("layer-grid") };
  const pictures = new Map();
  let timer = null;

  function levels(frame) {
    if (!frame.levels) frame.levels = Uint8Array.from(atob(frame.encoded), (c) => c.charCodeAt(0));
    return frame.levels;
  }

  function picture(index) {
    const source = frames[index].picture;
    if (!source) return null;
    if (!pictures.has(index)) {
      const image = new Image();
      image.onload = () => { if (api.index === index) draw(); };
      image.src = source;
      pictures.set(index, image);
    }
    return pictures.get(index);
  }

  function draw() {
    const frame = frames[api.index], [rows, columns] = data.grid;
    const width = canvas.clientWidth, ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(width * ratio * rows / columns);
    const pen = canvas.getContext("2d");
    pen.clearRect(0, 0, canvas.width, canvas.height);
    const image = picture(api.index);
    if (image && image.complete) pen.drawImage(image, 0, 0, canvas.width, canvas.height);
    if (layers.dropped.checked && frame.kept) drawDropped(pen, frame);
    if (layers.encoded.checked) drawEncoded(pen, frame, ratio);
    if (layers.grid.checked) drawGrid(pen, data.grid, ratio);
    canvas.setAttribute("aria-label", describe(frame));
  }

  function cell(grid, index) {
    const [rows, columns] = grid, r = Math.floor(index / columns), c = index % columns;
    const x = Math.round(c * canvas.width / columns), y = Math.round(r * canvas.height / rows);
    return [x, y, Math.round((c + 1) * canvas.width / columns) - x, Math.round((r + 1) * canvas.height / rows) - y];
  }

  function drawDropped(pen, frame) {
    const kept = new Set(frame.kept);
    pen.fillStyle = "rgba(11, 15, 20, 0.6)";
    for (let i = 0; i < data.features; i++) if (!kept.has(i)) pen.fillRect(...cell(data.featureGrid, i));
  }

  function drawEncoded(pen, frame, ratio) {
    const value = levels(frame), [rows, columns] = data.grid;
    pen.fillStyle = pen.strokeStyle = "#ff7a1a"; // over a photograph, the same in both schemes
    pen.lineWidth = 1.5 * ratio;
    // On a dense frame the tint would say nothing and hide the picture: the outline is enough.
    const tinted = frame.kind !== "dense";
    if (!tinted) pen.lineWidth *= 3;
    for (let i = 0; tinted && i < value.length; i++) {
      if (!value[i]) continue;
      pen.globalAlpha = 0.38 * value[i] / 255;
      pen.fillRect(...cell(data.grid, i));
    }
    // An outline around each region: a tint alone is lost on a busy picture.
    pen.globalAlpha = 0.9;
    pen.beginPath();
    const on = (r, c) => r >= 0 && c >= 0 && r < rows && c < columns && value[r * columns + c] > 0;
    for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) {
      if (!on(r, c)) continue;
      const [x, y, w, h] = cell(data.grid, r * columns + c);
      if (!on(r - 1, c)) { pen.moveTo(x, y); pen.lineTo(x + w, y); }
      if (!on(r + 1, c)) { pen.moveTo(x, y + h); pen.lineTo(x + w, y + h); }
      if (!on(r, c - 1)) { pen.moveTo(x, y); pen.lineTo(x, y + h); }
      if (!on(r, c + 1)) { pen.moveTo(x + w, y); pen.lineTo(x + w, y + h); }
    }
    pen.stroke();
    pen.globalAlpha = 1;
  }

  function drawGrid(pen, grid, ratio) {
    pen.strokeStyle = "rgba(255, 255, 255, 0.35)";
    pen.lineWidth = ratio;
    pen.beginPath();
    for (let c = 1; c < grid[1]; c++) { const x = c * canvas.width / grid[1]; pen.moveTo(x, 0); pen.lineTo(x, canvas.height); }
    for (let r = 1; r < grid[0]; r++) { const y = r * canvas.height / grid[0]; pen.moveTo(0, y); pen.lineTo(canvas.width, y); }
    pen.stroke();
  }

  function describe(frame) {
    const kept = frame.kept ? `, ${frame.kept.length} of ${data.features} tokens kept` : "";
    return `Frame at ${frame.time.toFixed(2)} seconds: ${frame.kind}, ${percent(frame.encodedFraction)} of the tokens encoded anew${kept}`;
  }

  function facts(frame) {
    const spent = Object.entries(frame.seconds).filter(([, s]) => s > 0);
    const rows = [
      ["Time in the video", `${frame.time.toFixed(2)} s (frame ${frame.number})`],
      ["Encoded", frame.kind, frame.kind],
      ["Why", frame.reason],
      ["Tokens changed", String(frame.changed)],
      ["Encoded anew", `${percent(frame.encodedFraction)} of the tokens`],
      ["Work", `${percent(frame.cost)} of a dense frame`],
      ["Similar to dense", frame.similarity === null ? "not measured here" :
        `${frame.similarity.toFixed(4)} (worst token ${frame.similarityWorst.toFixed(3)})`],
      ["Tokens kept", frame.kept ? `${frame.kept.length} of ${data.features}` : `all ${data.features}`],
      ["Time spent", spent.map(([stage, s]) => `${stage} ${duration(s)}`).join(", ")],
      ["Dense reference", frame.denseSeconds === null ? "not run here" : duration(frame.denseSeconds)],
    ];
    const list = byId("facts");
    list.replaceChildren();
    for (const [name, value, badge] of rows) {
      const term = document.createElement("dt"), detail = document.createElement("dd");
      term.textContent = name;
      if (badge) {
        const mark = document.createElement("span");
        mark.className = "badge " + badge;
        mark.textContent = value;
        detail.append(mark);
      } else detail.textContent = value;
      list.append(term, detail);
    }
  }

  function go(index) {
    api.index = Math.max(0, Math.min(frames.length - 1, index));
    const frame = frames[api.index];
    slider.value = api.index;
    slider.setAttribute("aria-valuetext", describe(frame));
    byId("position").textContent = `${api.index + 1} / ${frames.length} · ${frame.time.toFixed(1)} s`;
    facts(frame);
    draw();
    if (api.index + 1 < frames.length) picture(api.index + 1);
    for (const listener of listeners) listener(api.index);
  }

  function setPlaying(on) {
    clearInterval(timer);
    timer = on ? setInterval(() => go((api.index + 1) % frames.length), 450) : null;
    play.textContent = on ? "❚❚" : "▶";
    play.setAttribute("aria-pressed", String(on));
    play.setAttribute("aria-label", on ? "Pause" : "Play");
  }

  slider.addEventListener("input", () => { setPlaying(false); go(Number(slider.value)); });
  play.addEventListener("click", () => setPlaying(timer === null));
  for (const layer of Object.values(layers)) layer.addEventListener("change", draw);
  document.addEventListener("keydown", (event) => {
    if (event.target === slider || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
      setPlaying(false);
      go(api.index + (event.key === "ArrowRight" ? 1 : -1));
    } else if (event.key === " " && event.target === document.body) setPlaying(timer === null);
    else return;
    event.preventDefault();
  });
  new ResizeObserver(draw).observe(canvas.parentElement);
  go(0);
  return api;
})();
