"use strict";
// Accuracy against cost and tokens, and by task.
(() => {
  const { data, colour, config } = page;
  const percent = (value) => (value === null || value === undefined ? null : 100 * value);

  function against(key, title) {
    const { axis, layout } = page.chart();
    const rows = data.rows.filter((row) => row[key] !== null && row.score !== null);
    const trace = {
      x: rows.map((row) => row[key]), y: rows.map((row) => percent(row.score)), mode: "markers+text",
      text: rows.map((row) => row.name), cliponaxis: false,
      textposition: rows.map((row, i) => ["top right", "bottom right", "top left", "bottom left"][i % 4]),
      marker: { size: 11, color: rows.map((row, i) => colour(i ? "--soft" : "--accent")) },
      hovertemplate: "%{text}<br>%{x:.4g}<br>%{y:.1f} %<extra></extra>",
    };
    Object.assign(layout, { showlegend: false, hovermode: "closest" });
    const most = Math.max(0, ...rows.map((row) => row[key]));
    layout.xaxis = { ...axis, title: { text: title }, range: [0, 1.3 * most || 1] };
    layout.yaxis = { ...axis, title: { text: `${data.column}, %` } };
    return [[trace], layout];
  }

  function tasks() {
    const { axis, layout } = page.chart();
    const traces = data.rows.map((row) => ({
      type: "bar", name: row.name, x: Object.keys(row.tasks), y: Object.values(row.tasks).map(percent),
      hovertemplate: "%{x}: %{y:.1f} %",
    }));
    layout.xaxis = { ...axis };
    layout.yaxis = { ...axis, title: { text: "right, %" }, range: [0, 100] };
    return [traces, layout];
  }

  function render() {
    Plotly.react("work", ...against("work", "work of the tower, % of dense"), config);
    Plotly.react("encode", ...against("encode", "milliseconds per frame in the tower"), config);
    Plotly.react("tokens", ...against("tokens", "tokens that an answer is given from"), config);
    Plotly.react("tasks", ...tasks(), config);
  }
  page.onScheme(render);
  render();
})();
