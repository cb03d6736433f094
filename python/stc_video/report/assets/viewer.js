"use strict";
// The picture with its overlays and the facts of the current frame.
// Other scripts follow the current frame by `stc.onFrame(callback)` and set it by `stc.go(index)`.
const stc = (() => {
  const { data, byId, percent, duration } = page;
  const frames = data.frames;
  const listeners = [];
  const api = { frames, get index() { return player.index; }, go: (i) => player.go(i), onFrame: (f) => listeners.push(f) };
  let player = { index: 0 };
  if (!frames.length) return api;

  const canvas = byId("picture"), slider = byId("slider");
  const layers = { encoded: byId("layer-encoded"), dropped: byId("layer-dropped"), grid: byId("layer-grid") };

  function levels(frame) {
    if (!frame.levels) frame.levels = Uint8Array.from(atob(frame.encoded), (c) => c.charCodeAt(0));
    return frame.levels;
  }

  function picture(index) {
    return page.picture(frames[index].picture, () => { if (player.index === index) draw(); });
  }

  function draw() {
    const frame = frames[player.index], ratio = window.devicePixelRatio || 1;
    const pen = page.prepare(canvas, data.grid, picture(player.index));
    if (layers.dropped.checked && frame.kept) {
      const kept = new Set(frame.kept);
      page.dim(pen, data.featureGrid, (i) => !kept.has(i));
    }
    if (layers.encoded.checked) drawEncoded(pen, frame, ratio);
    if (layers.grid.checked) drawGrid(pen, data.grid, ratio);
    canvas.setAttribute("aria-label", describe(frame));
  }

  function drawEncoded(pen, frame, ratio) {
    const value = levels(frame), orange = "#ff7a1a"; // over a photograph, the same in both schemes
    // On a dense frame the tint would say nothing and hide the picture: the outline is enough.
    const tinted = frame.kind !== "dense";
    pen.fillStyle = orange;
    for (let i = 0; tinted && i < value.length; i++) {
      if (!value[i]) continue;
      pen.globalAlpha = 0.38 * value[i] / 255;
      pen.fillRect(...page.cell(pen, data.grid, i));
    }
    page.outline(pen, data.grid, (i) => value[i] > 0, (tinted ? 1.5 : 4.5) * ratio, orange);
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

  function show(index) {
    const frame = frames[index];
    slider.setAttribute("aria-valuetext", describe(frame));
    facts(frame);
    draw();
    if (index + 1 < frames.length) picture(index + 1);
    for (const listener of listeners) listener(index);
  }

  for (const layer of Object.values(layers)) layer.addEventListener("change", draw);
  player = page.player(frames.length, show, (index) => `${frames[index].time.toFixed(1)} s`);
  new ResizeObserver(draw).observe(canvas.parentElement);
  // The first frame is dense, and shows nothing of what was saved.
  player.go(Math.max(0, frames.findIndex((frame) => frame.kind === "cached")));
  return api;
})();
