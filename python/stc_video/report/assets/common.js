"use strict";
// What every page of ours draws with: the data, colours, grids of tokens over a picture, a player,
// the looks of charts.
const page = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const percent = (x) => (100 * x < 9.95 ? (100 * x).toFixed(1) : Math.round(100 * x)) + " %";
  const duration = (s) => (s < 1 ? (1000 * s).toPrecision(3) + " ms" : s.toPrecision(3) + " s");
  const small = () => window.innerWidth < 620;

  // Pictures by their source, decoded once; `ready` is called when one has arrived.
  const pictures = new Map();
  function picture(source, ready) {
    if (!source) return null;
    if (!pictures.has(source)) {
      const image = new Image();
      image.onload = ready;
      image.src = source;
      pictures.set(source, image);
    }
    return pictures.get(source);
  }

  // Size a canvas to its place in the layout, clear it, and put the picture in.
  function prepare(canvas, grid, image) {
    const width = canvas.clientWidth, ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(width * ratio * grid[0] / grid[1]);
    const pen = canvas.getContext("2d");
    pen.clearRect(0, 0, canvas.width, canvas.height);
    if (image && image.complete) pen.drawImage(image, 0, 0, canvas.width, canvas.height);
    return pen;
  }

  // Left, top, width and height of a token; neighbours share their edges to the pixel.
  function cell(pen, grid, index) {
    const { width, height } = pen.canvas, [rows, columns] = grid;
    const r = Math.floor(index / columns), c = index % columns;
    const x = Math.round(c * width / columns), y = Math.round(r * height / rows);
    return [x, y, Math.round((c + 1) * width / columns) - x, Math.round((r + 1) * height / rows) - y];
  }

  function dim(pen, grid, isDropped) {
    pen.fillStyle = "rgba(11, 15, 20, 0.6)";
    for (let i = 0; i < grid[0] * grid[1]; i++) if (isDropped(i)) pen.fillRect(...cell(pen, grid, i));
  }

  // A line around each region of tokens: a tint alone is lost on a busy picture.
  function outline(pen, grid, isInside, width, style) {
    const [rows, columns] = grid;
    const on = (r, c) => r >= 0 && c >= 0 && r < rows && c < columns && isInside(r * columns + c);
    pen.globalAlpha = 0.9;
    pen.strokeStyle = style;
    pen.lineWidth = width;
    pen.beginPath();
    for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) {
      if (!on(r, c)) continue;
      const [x, y, w, h] = cell(pen, grid, r * columns + c);
      if (!on(r - 1, c)) { pen.moveTo(x, y); pen.lineTo(x + w, y); }
      if (!on(r + 1, c)) { pen.moveTo(x, y + h); pen.lineTo(x + w, y + h); }
      if (!on(r, c - 1)) { pen.moveTo(x, y); pen.lineTo(x, y + h); }
      if (!on(r, c + 1)) { pen.moveTo(x + w, y); pen.lineTo(x + w, y + h); }
    }
    pen.stroke();
    pen.globalAlpha = 1;
  }

  // The slider, the button and the keys. `show(index)` draws a frame, `label(index)` says where it is.
  function player(count, show, label, every = 450) {
    const slider = byId("slider"), play = byId("play");
    let timer = null;
    const api = { index: 0, count, go, setCount };

    function go(index) {
      api.index = Math.max(0, Math.min(api.count - 1, index));
      slider.value = api.index;
      byId("position").textContent = `${api.index + 1} / ${api.count} · ${label(api.index)}`;
      show(api.index);
    }

    function setCount(number) {
      api.count = number;
      slider.max = number - 1;
      go(Math.min(api.index, number - 1));
    }

    function setPlaying(on) {
      clearInterval(timer);
      timer = on ? setInterval(() => go((api.index + 1) % api.count), every) : null;
      play.textContent = on ? "❚❚" : "▶";
      play.setAttribute("aria-pressed", String(on));
      play.setAttribute("aria-label", on ? "Pause" : "Play");
    }

    slider.addEventListener("input", () => { setPlaying(false); go(Number(slider.value)); });
    play.addEventListener("click", () => setPlaying(timer === null));
    document.addEventListener("keydown", (event) => {
      if (event.target === slider || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.target.tagName === "SELECT") return;
      if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
        setPlaying(false);
        go(api.index + (event.key === "ArrowRight" ? 1 : -1));
      } else if (event.key === " " && event.target === document.body) setPlaying(timer === null);
      else return;
      event.preventDefault();
    });
    return api;
  }

  // How our charts look; axes and layout to start from.
  function chart() {
    const line = colour("--line");
    const axis = { gridcolor: line, linecolor: line, zeroline: false, fixedrange: true };
    return {
      axis,
      layout: {
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: false,
        font: { family: "system-ui, sans-serif", size: small() ? 11 : 13, color: colour("--text") },
        margin: { l: small() ? 48 : 62, r: 14, t: 30, b: 44 },
        hoverlabel: { bgcolor: colour("--card"), bordercolor: line, font: { color: colour("--text") } },
        legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
      },
    };
  }
  const config = { displayModeBar: false, responsive: true };
  const onScheme = (render) => matchMedia("(prefers-color-scheme: dark)").addEventListener("change", render);

  return { data, byId, colour, percent, duration, small, picture, prepare, cell, dim, outline, player, chart, config, onScheme };
})();
