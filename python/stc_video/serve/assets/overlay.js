"use strict";
// A frame with what happened to its tokens drawn over it.
const overlay = (() => {
  function cells(grid, canvas, index) {
    const [rows, columns] = grid, row = Math.floor(index / columns), column = index % columns;
    const x = Math.round(column * canvas.width / columns), y = Math.round(row * canvas.height / rows);
    return [x, y, Math.round((column + 1) * canvas.width / columns) - x, Math.round((row + 1) * canvas.height / rows) - y];
  }

  function dropped(pen, canvas, facts) {
    const kept = new Set(facts.kept), [rows, columns] = facts.feature_grid;
    pen.fillStyle = "rgba(11, 15, 20, 0.6)";
    for (let i = 0; i < rows * columns; i++) if (!kept.has(i)) pen.fillRect(...cells(facts.feature_grid, canvas, i));
  }

  // Stronger where more layers encoded the token anew; a dense frame gets its outline only.
  function encoded(pen, canvas, facts) {
    pen.strokeStyle = pen.fillStyle = "#ff7a1a";
    if (facts.kind === "dense") {
      pen.lineWidth = 6;
      pen.strokeRect(0, 0, canvas.width, canvas.height);
      return;
    }
    const levels = Uint8Array.from(atob(facts.encoded), (c) => c.charCodeAt(0));
    for (let i = 0; i < levels.length; i++) {
      if (!levels[i]) continue;
      pen.globalAlpha = 0.45 * levels[i] / 255;
      pen.fillRect(...cells(facts.grid, canvas, i));
    }
    pen.globalAlpha = 1;
  }

  // `layers` says which of the two are drawn.
  return function draw(canvas, bitmap, facts, layers) {
    canvas.width = bitmap.width;
    canvas.height = bitmap.height;
    const pen = canvas.getContext("2d");
    pen.drawImage(bitmap, 0, 0);
    if (layers.dropped) dropped(pen, canvas, facts);
    if (layers.encoded && facts.encoded !== undefined) encoded(pen, canvas, facts);
  };
})();
