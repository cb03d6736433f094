"use strict";
// Curves over time and stacked time per stage; both follow the current frame.
(() => {
  const { data, colour, small, config } = page;
  const { frames } = stc;
  if (!frames.length) return;
  const x = frames.map((f) => f.time);

  function base() {
    const { axis, layout } = page.chart();
    layout.hovermode = "x unified";
    layout.xaxis = { ...axis, title: { text: "seconds" }, showspikes: false };
    return { axis, layout };
  }

  const current = () => [{
    type: "line", xref: "x", yref: "paper", y0: 0, y1: 1, layer: "above",
    x0: frames[stc.index].time, x1: frames[stc.index].time,
    line: { color: colour("--text"), width: 1.5, dash: "dot" },
  }];

  function title(text, y) {
    return { text, xref: "paper", yref: "paper", x: 0, y, yanchor: "bottom", showarrow: false, font: { size: 13 } };
  }

  function curves() {
    const { axis, layout } = base();
    const measured = frames.filter((f) => f.similarity !== null);
    const rows = measured.length ? [[0.73, 0.95], [0.38, 0.6], [0.04, 0.25]] : [[0.6, 0.95], [0.5, 0.5], [0.05, 0.38]];
    const symbols = { dense: "square", cached: "circle", unchanged: "diamond-open" };
    const traces = [
      { name: "encoded anew", x, y: frames.map((f) => 100 * f.encodedFraction), yaxis: "y", mode: "lines+markers",
        line: { color: colour("--encoded"), width: 2 }, marker: { size: 6, symbol: frames.map((f) => symbols[f.kind]) },
        text: frames.map((f) => f.kind), hovertemplate: "%{y:.0f} % of the tokens (%{text})" },
      { name: "work", x, y: frames.map((f) => 100 * f.cost), yaxis: "y", mode: "lines",
        line: { color: colour("--accent"), width: 2, dash: "dot" }, hovertemplate: "%{y:.0f} % of dense" },
      { name: "tokens kept", x, y: frames.map((f) => (f.kept ? f.kept.length : data.features)), yaxis: "y3", mode: "lines",
        line: { color: colour("--kept"), width: 2, shape: "hv" }, showlegend: false, hovertemplate: "%{y} kept" },
    ];
    const annotations = [title("Encoded anew (line), work (dotted), %", rows[0][1] + 0.01),
      title(`Tokens kept of ${data.features}`, rows[2][1] + 0.01)];
    layout.yaxis = { ...axis, domain: rows[0], range: [-4, 106], tickvals: [0, 50, 100] };
    layout.yaxis3 = { ...axis, domain: rows[2], range: [0, data.features * 1.08], nticks: 4 };
    if (measured.length) {
      traces.push({ name: "similarity", x: measured.map((f) => f.time), y: measured.map((f) => f.similarity), yaxis: "y2",
        mode: "lines+markers", line: { color: colour("--third"), width: 1, dash: "dot" }, marker: { size: 8 },
        showlegend: false, hovertemplate: "%{y:.4f} cosine" });
      annotations.push(title("Cosine to a dense encode, where measured", rows[1][1] + 0.01));
      // From just below the worst to just above one, but never so close that rounding fills it.
      const span = Math.max(0.01, 1 - Math.min(...measured.map((f) => f.similarity)));
      layout.yaxis2 = { ...axis, domain: rows[1], range: [1 - 1.15 * span, 1 + 0.15 * span], nticks: 4, hoverformat: ".4f" };
    }
    Object.assign(layout, { annotations, showlegend: false, shapes: current(), margin: { ...layout.margin, t: 6 } });
    layout.xaxis.anchor = "y3";
    return [traces, layout];
  }

  function stages() {
    const { axis, layout } = base();
    const names = Object.keys(frames[0].seconds).filter((s) => frames.some((f) => f.seconds[s] > 0));
    const colours = ["--soft", "--fourth", "--accent", "--third", "--kept", "--encoded"];
    const order = Object.keys(frames[0].seconds);
    const traces = names.map((stage) => ({
      type: "bar", name: stage, x, y: frames.map((f) => 1000 * f.seconds[stage]),
      marker: { color: colour(colours[order.indexOf(stage)]) }, hovertemplate: "%{y:.1f} ms",
    }));
    const reference = frames.filter((f) => f.denseSeconds !== null);
    if (reference.length) traces.push({
      name: "dense reference of the tower (separate)", mode: "markers", x: reference.map((f) => f.time),
      y: reference.map((f) => 1000 * f.denseSeconds), hovertemplate: "%{y:.1f} ms",
      marker: { symbol: "line-ew", size: 13, line: { width: 3, color: colour("--encoded") } },
    });
    Object.assign(layout, { barmode: "stack", bargap: 0.25, shapes: current(), yaxis: { ...axis, title: { text: "milliseconds" } } });
    layout.margin.t = small() ? 84 : 40;
    return [traces, layout];
  }

  const charts = { curves, stages };
  function render() {
    for (const [id, make] of Object.entries(charts)) Plotly.react(id, ...make(), config);
  }

  render();
  for (const id of Object.keys(charts)) {
    document.getElementById(id).on("plotly_click", (event) => {
      const time = event.points[0].x;
      stc.go(x.reduce((best, t, i) => (Math.abs(t - time) < Math.abs(x[best] - time) ? i : best), 0));
    });
  }
  let pending = false;
  stc.onFrame(() => {
    if (pending) return; // a few redraws a second are enough while the slider is dragged
    pending = true;
    setTimeout(() => {
      pending = false;
      for (const id of Object.keys(charts)) Plotly.relayout(id, { shapes: current() });
    }, 30);
  });
  page.onScheme(render);
})();
