"use strict";
// The charts of a prune study and the masks of its methods; all follow the three choices.
(() => {
  const { data, byId, colour, small, config } = page;
  const choice = { budget: byId("budget"), clip: byId("clip"), measure: byId("measure") };
  const budget = () => data.budgets[choice.budget.value];
  const clipName = () => (choice.clip.value === "0" ? data.all : data.clips[choice.clip.value - 1].name);
  const clip = () => data.clips[Math.max(0, choice.clip.value - 1)];
  const measure = () => choice.measure.value;

  // One colour per pruner, a symbol and a dash per setting of it; controls are grey.
  const hues = { stc: "#3b82f6", dtd: "#e8590c", streaming_assistant: "#d6336c", vidcom2: "#2f9e44",
    visionzip: "#9c5fe0", tome: "#b08900", evs: "#0c9aa8", uniform: "#868e96", random: "#868e96" };
  const seen = {};
  const looks = Object.fromEntries(data.methods.map(({ name }) => {
    const family = Object.keys(hues).find((key) => name.startsWith(key)) || "random";
    const turn = (seen[hues[family]] = (seen[hues[family]] ?? -1) + 1);
    return [name, { colour: hues[family], symbol: ["circle", "diamond-open", "square"][turn % 3], dash: ["solid", "dash", "dot"][turn % 3] }];
  }));

  const row = (method, at) => data.rows.find((r) => r.method === method && r.budget === at && r.clip === clipName());

  function axes(layout, axis, x) {
    layout.xaxis = { ...axis, ...x };
    layout.yaxis = { ...axis, title: { text: data.measures[measure()] }, nticks: 7 };
    return layout;
  }

  const below = /^(evs|vidcom2|visionzip)/; // near others: their names go to the other side

  function pareto() {
    const { axis, layout } = page.chart();
    const front = data.fronts[clipName()][choice.budget.value][measure()];
    const points = data.methods.map((m) => row(m.name, budget())).filter((r) => r[measure()] !== null);
    const steps = front.map((name) => row(name, budget()));
    const traces = [{
      x: steps.map((r) => r.latency_median), y: steps.map((r) => r[measure()]), mode: "lines",
      line: { shape: "hv", color: colour("--soft"), width: 1.5, dash: "dot" }, hoverinfo: "skip",
    }, ...points.map((r) => ({
      name: r.method, x: [r.latency_median], y: [r[measure()]], mode: "markers+text",
      text: [!small() || front.includes(r.method) ? r.method : ""], textposition: below.test(r.method) ? "bottom center" : "top center",
      textfont: { size: small() ? 10 : 12 }, cliponaxis: false,
      marker: { size: 11, color: looks[r.method].colour, symbol: looks[r.method].symbol },
      hovertemplate: `${r.method}<br>${r.latency_median.toPrecision(3)} ms (p99 ${r.latency_p99.toPrecision(3)})<br>%{y:.4f}<extra></extra>`,
    }))];
    Object.assign(layout, { showlegend: false, hovermode: "closest" });
    return [traces, axes(layout, axis, { type: "log", title: { text: "median milliseconds per frame" }, tickvals: [1, 2, 5].flatMap((d) => [-2, -1, 0, 1, 2].map((e) => d * 10 ** e)) })];
  }

  function budgets() {
    const { axis, layout } = page.chart();
    const traces = data.methods.map(({ name }) => {
      const rows = data.budgets.map((at) => row(name, at)).filter((r) => r[measure()] !== null);
      return {
        name, x: rows.map((r) => 100 * r.kept / r.tokens), y: rows.map((r) => r[measure()]), mode: "lines+markers",
        line: { color: looks[name].colour, dash: looks[name].dash, width: 2 },
        marker: { size: 7, symbol: looks[name].symbol }, hovertemplate: "%{y:.4f} at %{x:.1f} %",
      };
    });
    Object.assign(layout, { hovermode: "closest", showlegend: true });
    layout.legend = { orientation: "h", y: -0.16, yanchor: "top", x: 0, font: { size: small() ? 10 : 12 } };
    layout.margin.t = 10;
    return [traces, axes(layout, axis, { type: "log", title: { text: "percent of the tokens kept" }, tickvals: [1, 2, 5, 10, 25, 50, 100] })];
  }

  const masks = byId("masks");
  const tiles = [null, ...data.methods.map((m) => m.name)].map((method) => {
    const figure = document.createElement("figure"), canvas = document.createElement("canvas"), caption = document.createElement("figcaption");
    canvas.setAttribute("role", "img");
    figure.append(canvas, caption);
    masks.append(figure);
    return { method, canvas, caption };
  });
  const has = (bits) => {
    const bytes = Uint8Array.from(atob(bits), (c) => c.charCodeAt(0));
    return (i) => (bytes[i >> 3] >> (i & 7)) & 1;
  };
  const drawn = () => { if (player.index >= 0) show(player.index); };

  function show(index) {
    const { grid, pictures, moved, salient, keep } = clip();
    const tokens = grid[0] * grid[1], ratio = window.devicePixelRatio || 1;
    const image = page.picture(pictures[index], drawn);
    for (const { method, canvas, caption } of tiles) {
      const pen = page.prepare(canvas, grid, image);
      let title = "the frame", note = "what moved and what is salient";
      if (method === null) {
        page.outline(pen, grid, has(moved[index]), 2 * ratio, "#ff7a1a");
        page.outline(pen, grid, has(salient[index]), 2 * ratio, "#c77dff");
      } else {
        const kept = has(keep[choice.budget.value][method][index]);
        page.dim(pen, grid, (i) => !kept(i));
        let count = 0;
        for (let i = 0; i < tokens; i++) count += kept(i);
        [title, note] = [method, `${count} of ${tokens}`];
      }
      canvas.setAttribute("aria-label", `${title}: ${note}`);
      const soft = document.createElement("span");
      soft.textContent = " " + note;
      caption.replaceChildren(title, soft);
    }
    if (index + 1 < pictures.length) page.picture(pictures[index + 1]);
  }

  const player = page.player(clip().times.length, show, (index) => `${clip().times[index].toFixed(1)} s`, 600);
  const charts = { pareto, budgets };
  function render() {
    for (const [id, make] of Object.entries(charts)) Plotly.react(id, ...make(), config);
  }
  for (const select of Object.values(choice)) {
    select.addEventListener("change", () => { render(); player.setCount(clip().times.length); });
  }
  new ResizeObserver(drawn).observe(masks);
  page.onScheme(render);
  render();
  player.go(1); // in a first frame nothing has moved yet
})();
