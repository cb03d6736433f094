"use strict";
// Pushes a camera or a file, shows what the model has seen of it, and asks.
(() => {
  const by = (id) => document.getElementById(id);
  const video = by("video"), canvas = by("picture"), grabber = document.createElement("canvas");
  const state = { token: sessionStorage.getItem("stc-token"), pusher: null, watcher: null, timer: null, skipped: 0, last: null };
  const MOST_UNSENT = 1 << 20, JPEG_QUALITY = 0.85;

  // -- the service --------------------------------------------------------------------------

  function headers() {
    return state.token ? { Authorization: `Bearer ${state.token}` } : {};
  }

  function socket(path) {
    const url = new URL(path, location.href);
    url.protocol = url.protocol.replace("http", "ws");
    return new WebSocket(url, state.token ? ["stc", `bearer.${state.token}`] : ["stc"]);
  }

  const streamPath = () => `v1/streams/${encodeURIComponent(by("stream").value.trim())}`;
  const say = (text) => { by("status").textContent = text; };
  // Beside the status, which the next frame changes.
  const warn = (text) => { by("warning").textContent = text; by("warning").hidden = !text; };

  async function begin() {
    const response = await fetch("v1/info", { headers: headers() });
    by("login").hidden = response.status !== 401;
    if (!response.ok) {
      if (state.token && response.status === 401) say("The token is wrong.");
      return;
    }
    const info = await response.json();
    by("model").textContent = info.model;
    by("notice").hidden = !info.notice;
    by("notice").textContent = info.notice || "";
    const streams = await (await fetch("v1/streams", { headers: headers() })).json();
    by("streams").replaceChildren(...streams.data.map((s) => new Option(s.id, s.id)));
  }

  // -- watching -----------------------------------------------------------------------------

  function facts(seen) {
    const rejected = Object.entries(seen.rejected).map(([reason, n]) => `${n} ${reason}`).join(", ") || "0";
    const rows = [
      ["Frame", `${seen.number}, ${new Date(1000 * seen.time).toLocaleTimeString()}`],
      ["Encoded", seen.kind ? `${seen.kind}: ${seen.reason}` : "densely, without a cacher"],
      ["Work", seen.cost === undefined ? "100 %" : `${Math.round(100 * seen.cost)} % of a dense frame`],
      ["Tokens kept", `${seen.kept.length} of ${seen.feature_grid[0] * seen.feature_grid[1]}`],
      ["Seen after", `${Math.round(1000 * seen.seconds)} ms`],
      ["Frames", `${seen.received} received, ${seen.seen} seen, ${seen.dropped} dropped, ${seen.waiting} waiting, rejected: ${rejected}`],
    ];
    by("facts").replaceChildren(...rows.flatMap(([name, value]) => {
      const term = document.createElement("dt"), detail = document.createElement("dd");
      term.textContent = name;
      detail.textContent = value;
      return [term, detail];
    }));
  }

  function redraw() {
    if (!state.last) return;
    const layers = { encoded: by("layer-encoded").checked, dropped: by("layer-dropped").checked };
    overlay(canvas, state.last.bitmap, state.last.facts, layers);
  }

  function watch() {
    if (state.watcher) return;
    const watcher = state.watcher = socket(`${streamPath()}/watch`);
    let seen = null;
    watcher.onmessage = async ({ data }) => {
      if (typeof data === "string") {
        seen = JSON.parse(data);
        if (seen.event === "refused") say(seen.message);
        else if (seen.event === "ended") say(`The stream has ended: ${seen.reason}.`);
        return;
      }
      const told = seen, bitmap = await createImageBitmap(data);
      state.last = { bitmap, facts: told };
      facts(told);
      redraw();
    };
    watcher.onclose = () => { if (state.watcher === watcher) state.watcher = null; };
  }

  // -- pushing ------------------------------------------------------------------------------

  async function grab() {
    const pusher = state.pusher;
    if (!pusher || pusher.readyState !== WebSocket.OPEN || video.readyState < 2) return;
    if (pusher.bufferedAmount > MOST_UNSENT) { state.skipped++; return; }
    grabber.width = video.videoWidth;
    grabber.height = video.videoHeight;
    grabber.getContext("2d").drawImage(video, 0, 0);
    const timestamp = Date.now() / 1000;
    const blob = await new Promise((done) => grabber.toBlob(done, "image/jpeg", JPEG_QUALITY));
    if (pusher.readyState !== WebSocket.OPEN) return;
    pusher.send(JSON.stringify({ timestamp }));
    pusher.send(blob);
  }

  function push(label) {
    const pusher = state.pusher = socket(`${streamPath()}/frames`);
    warn("");
    let problem = null;
    pusher.onopen = () => say(`Pushing ${label}.`);
    pusher.onmessage = ({ data }) => {
      const told = JSON.parse(data);
      if (told.event === "seen") watch();
      else if (told.event === "refused") say(problem = told.message);
      else if (told.event === "ended") say(problem = `The stream has ended: ${told.reason}.`);
      else if (told.event === "warning") warn(told.message);
      else if (told.event === "rejected" || told.event === "error") say(`Refused: ${told.message}`);
      else if (told.event === "dropped") say(`Pushing ${label}; the model is slower than the camera, ${told.dropped} frames dropped.`);
    };
    pusher.onclose = () => {
      if (state.pusher !== pusher) return;
      stop();
      say(problem || "The connection was closed.");
    };
    const fps = Math.min(30, Math.max(0.1, Number(by("fps").value) || 2));
    state.timer = setInterval(grab, 1000 / fps);
    by("stop").disabled = false;
  }

  function stop() {
    clearInterval(state.timer);
    const open = [state.pusher, state.watcher];
    state.pusher = state.watcher = state.timer = null;
    for (const each of open) if (each) each.close();
    if (video.srcObject) for (const track of video.srcObject.getTracks()) track.stop();
    video.srcObject = null;
    video.removeAttribute("src");
    by("stop").disabled = true;
    say("Stopped.");
  }

  async function pushCamera() {
    stop();
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: true });
      await video.play();
    } catch (error) {
      say(`The camera cannot be used: ${error.message}`);
      return;
    }
    push("the camera");
  }

  async function pushFile() {
    const file = by("file").files[0];
    if (!file) return;
    stop();
    video.src = URL.createObjectURL(file);
    video.onended = () => { clearInterval(state.timer); say(`${file.name} has ended.`); };
    try {
      await video.play();
    } catch (error) {
      say(`${file.name} cannot be played: ${error.message}`);
      return;
    }
    push(file.name);
  }

  // -- asking -------------------------------------------------------------------------------

  // Yields the values of server-sent events.
  async function* events(response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      text += value;
      const parts = text.split("\n\n");
      text = parts.pop();
      for (const part of parts) if (part.startsWith("data: ") && part !== "data: [DONE]") yield JSON.parse(part.slice(6));
    }
  }

  function card(question) {
    const article = document.createElement("article");
    const [title, text, note] = ["h3", "p", "p"].map((tag) => document.createElement(tag));
    title.textContent = question;
    note.className = "facts";
    article.append(title, text, note);
    by("answers").prepend(article);
    return { text, note };
  }

  function givenFrom(stc) {
    const seconds = `first token after ${Math.round(1000 * stc.seconds.first_token)} ms`;
    if (!stc.retrieved) return `From all ${stc.frames_seen} frames; ${seconds}.`;
    const times = stc.retrieved.slice(-6).map((f) => new Date(1000 * f.time).toLocaleTimeString());
    return `From ${stc.retrieved.length} of ${stc.frames_seen} frames, the last at ${times.join(", ") || "no time"}; ${seconds}.`;
  }

  async function ask(event) {
    event.preventDefault();
    const question = by("question").value, { text, note } = card(question), abort = new AbortController();
    by("send").disabled = true;
    by("cancel").disabled = false;
    by("cancel").onclick = () => abort.abort();
    try {
      const response = await fetch(`${streamPath()}/chat/completions`, {
        method: "POST", signal: abort.signal,
        headers: { "Content-Type": "application/json", ...headers() },
        body: JSON.stringify({ stream: true, messages: [{ role: "user", content: question }] }),
      });
      if (!response.ok) throw new Error((await response.json()).error.message);
      for await (const told of events(response)) {
        if (told.error) throw new Error(told.error.message);
        for (const choice of told.choices) text.textContent += choice.delta.content || "";
        if (told.stc) note.textContent = givenFrom(told.stc);
      }
    } catch (error) {
      note.textContent = error.name === "AbortError" ? "Stopped." : error.message;
    }
    by("send").disabled = false;
    by("cancel").disabled = true;
  }

  by("camera").addEventListener("click", pushCamera);
  by("file").addEventListener("change", pushFile);
  by("watch").addEventListener("click", () => { stop(); by("stop").disabled = false; say("Watching."); watch(); });
  by("stop").addEventListener("click", stop);
  by("ask").addEventListener("submit", ask);
  for (const id of ["layer-encoded", "layer-dropped"]) by(id).addEventListener("change", redraw);
  by("login").addEventListener("submit", (event) => {
    event.preventDefault();
    state.token = by("token").value;
    sessionStorage.setItem("stc-token", state.token);
    begin();
  });
  begin();
})();
