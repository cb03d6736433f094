"use strict";
// The charts of a fidelity study; they follow the choices.
(() => {
  const { data, byId, colour, small, config } = page;
  const choice = Object.fromEntries(["rate", "clip", "measure", "cost", "one", "other"].map((id) => [id, byId(id)]));
  const value = (name) => choice[name].value;

  // Errors span orders of magnitude; what is smaller than this is drawn here.
  const FLOOR = 1e-4;
  const isError = () => data.measures[value("measure")].is_error;
  const height = (number) => (isError() ? Math.max(number, FLOOR) : number);

  // One colour per policy and way to choose, a symbol per interval.
  const symbols = ["circle", "diamond", "square", "triangle-up", "cross", "star"];
  const seen = {};
  const families = [...new Set(data.settings.map((s) => s.family))].map((family) => {
    const members = data.settings.flatMap((s, number) => (s.family === family ? [number] : []));
    const policy = data.settings[members[0]].policy;
    const hue = policy === "stc" ? "#e8590c" : policy === "dense" ? "#868e96" : family.endsWith("threshold") ? "#0c8577" : "#3b82f6";
    const turn = (seen[hue] = (seen[hue] ?? -1) + 1);
    return { family, members, hue, symbol: symbols[turn % symbols.length], dash: ["solid", "dash", "dot"][turn % 3] };
  });

  function pareto() {
    const { axis, layout } = page.chart();
    const [measure, cost] = [value("measure"), value("cost")];
    const points = data.points[value("rate")][value("clip")];
    const front = data.fronts[value("rate")][value("clip")][cost][measure];
    const traces = [{
      x: front.map((n) => points[n][cost]), y: front.map((n) => height(points[n][measure])), mode: "lines",
      line: { shape: "hv", color: colour("--soft"), width: 5 }, opacity: 0.3, hoverinfo: "skip", showlegend: false,
    }, ...families.map(({ family, members, hue, symbol, dash }) => {
      const shown = members.filter((n) => points[n][measure] !== null && points[n][cost] !== null)
        .sort((a, b) => points[a][cost] - points[b][cost]);
      return {
        name: family, x: shown.map((n) => points[n][cost]), y: shown.map((n) => height(points[n][measure])),
        mode: "lines+markers+text", text: shown.map((n) => data.settings[n].value),
        textposition: family.endsWith("threshold") ? "bottom center" : "top center", textfont: { size: small() ? 9 : 11 },
        customdata: shown.map((n) => [data.settings[n].name, points[n][measure]]), cliponaxis: false,
        line: { color: hue, dash, width: 1.5 }, marker: { size: 10, color: hue, symbol },
        hovertemplate: "%{customdata[0]}<br>%{x:.3f}<br>%{customdata[1]:.5f}<extra></extra>",
      };
    })];
    layout.xaxis = { ...axis, title: { text: data.costs[cost] }, rangemode: "tozero", nticks: 8 };
    layout.yaxis = { ...axis, title: { text: data.measures[measure].words } };
    if (isError()) {
      Object.assign(layout.yaxis, { type: "log", tickformat: "~g", tickvals: [-4, -3, -2, -1, 0].flatMap((e) => [1, 3].map((d) => d * 10 ** e)) });
    }
    Object.assign(layout, { hovermode: "closest", showlegend: true });
    layout.legend = { orientation: "h", y: -0.14, yanchor: "top", x: 0, font: { size: small() ? 10 : 12 } };
    layout.margin.t = 10;
    return [traces, layout];
  }

  function frames() {
    const { axis, layout } = page.chart();
    const clips = data.frames[value("rate")][Math.max(0, value("clip") - 1)];
    const colours = ["--accent", "--encoded"];
    const traces = [value("one"), value("other")].flatMap((number, turn) => {
      const { costs, errors } = clips[number];
      const line = { color: colour(colours[turn]), width: 2, dash: turn ? "dot" : "solid" };
      const name = data.settings[number].name;
      return [
        { name, x: errors.map((_, i) => i + 2), y: errors.map((e) => Math.max(e, FLOOR)), yaxis: "y", mode: "lines+markers",
          line, marker: { size: 6 }, customdata: errors, hovertemplate: "%{customdata:.5f}" },
        { name, x: costs.map((_, i) => i + 1), y: costs, yaxis: "y2", mode: "lines+markers", line, marker: { size: 6 },
          showlegend: false, hovertemplate: "%{y:.3f}" },
      ];
    });
    layout.xaxis = { ...axis, title: { text: "frame" }, anchor: "y2" };
    layout.yaxis = { ...axis, domain: [0.5, 1], type: "log", tickformat: "~g", title: { text: "error" }, tickvals: [1e-4, 1e-3, 1e-2, 0.1, 1] };
    layout.yaxis2 = { ...axis, domain: [0, 0.42], title: { text: "cost" }, rangemode: "tozero", nticks: 5 };
    Object.assign(layout, { hovermode: "x unified", showlegend: true });
    return [traces, layout];
  }

  const charts = { pareto, frames };
  function render() {
    for (const [id, make] of Object.entries(charts)) Plotly.react(id, ...make(), config);
  }
  for (const select of Object.values(choice)) select.addEventListener("change", render);
  page.onScheme(render);
  render();
})();
