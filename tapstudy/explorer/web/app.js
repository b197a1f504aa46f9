// The page: state, controls, and what follows from them.

const element = (id) => document.getElementById(id);

function make(kind, text = "", style = {}) {
  const made = document.createElement(kind);
  made.textContent = text;
  Object.assign(made.style, style);
  return made;
}

class Explorer {
  constructor(recordings) {
    const [recording] = recordings, [, rows, columns] = recording.grid;
    this.recording = recording; // all agree in samples, contexts, steps and tokens
    for (let i = 1; i < recordings.length; i++) Pane.copy(i);
    this.panes = recordings.map((one, i) => new Pane(one, this, i));
    this.layers = recording.layers.filter(({ name }) =>
      recordings.every((one) => one.layers.some((layer) => layer.name === name)));
    this.state = {
      sample: 0, context: 0, step: recording.opens,
      layer: 0, frame: 0, opacity: 90,
      token: Math.floor(rows / 2) * columns + Math.floor(columns / 2), // kept, within the frame
    };
    this.hovered = null;
    this.playing = null;
    this.fillControls();
    this.readHash();
    this.listen();
    this.draw();
  }

  get layer() { return this.layers[this.state.layer]; }
  get perFrame() { return this.recording.grid[1] * this.recording.grid[2]; }
  get token() { return this.state.frame * this.perFrame + (this.hovered ?? this.state.token); }

  fillControls() {
    const { samples, contexts, steps, grid } = this.recording;
    const fill = (id, texts) => texts.forEach((text, i) => {
      const option = make("option", text);
      option.value = i;
      element(id).append(option);
    });
    fill("sample", samples.map(({ number, name }) => (name ? `${number}: ${name}` : `${number}`)));
    fill("context", contexts);
    fill("layer", this.layers.map((layer) => layer.title));
    element("step").max = steps.length - 1;
    element("frame").max = grid[0] - 1;
    element("frame-label").hidden = grid[0] === 1;
    element("title").textContent = this.panes.length === 1 ? this.recording.title : "two recordings side by side";
    for (const pane of this.panes) pane.part("whose").textContent = this.panes.length === 1 ? "" : pane.recording.title;
  }

  listen() {
    for (const name of ["sample", "context", "layer", "step", "frame", "opacity"]) {
      element(name).addEventListener("input", (event) => this.set({ [name]: Number(event.target.value) }));
    }
    for (const pane of this.panes) pane.listen();
    element("play").addEventListener("click", () => this.play());
    element("link").addEventListener("click", () => this.copyLink());
    element("ask").addEventListener("click", () => this.help());
    document.addEventListener("keydown", (event) => this.key(event));
    window.addEventListener("hashchange", () => { this.readHash(); this.draw(); });
    new ResizeObserver(() => this.draw()).observe(document.body);
  }

  set(change) {
    Object.assign(this.state, change);
    this.draw();
    clearTimeout(this.saving);
    this.saving = setTimeout(() => this.writeHash(), 250);
  }

  goTo(step) { this.set({ step: Math.min(this.recording.steps.length - 1, Math.max(0, step)) }); }

  hover(token) {
    if (token === this.hovered) return;
    this.hovered = token;
    this.draw();
  }

  key(event) {
    if (event.ctrlKey || event.altKey || event.metaKey || event.target.tagName === "SELECT") return;
    if (element("help").open && event.key !== "?") return; // Escape closes it
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const [, rows, columns] = this.recording.grid;
    if (event.key in moves && event.shiftKey) {
      const [down, right] = moves[event.key];
      const row = Math.min(rows - 1, Math.max(0, Math.floor(this.state.token / columns) + down));
      const column = Math.min(columns - 1, Math.max(0, (this.state.token % columns) + right));
      this.hovered = null;
      this.set({ token: row * columns + column });
    } else if (event.key in moves && moves[event.key][1] && event.target.tagName !== "INPUT") {
      this.goTo(this.state.step + moves[event.key][1]);
    } else if (event.key === " " && event.target.tagName !== "BUTTON") {
      this.play();
    } else if (event.key === "?") {
      this.help();
    } else if (event.key === "c") {
      this.copyLink();
    } else if (event.key === "l") {
      this.set({ layer: (this.state.layer + 1) % this.layers.length });
    } else return;
    event.preventDefault();
  }

  help() {
    const help = element("help");
    if (help.open) help.close();
    else help.showModal();
  }

  // an address that opens this view; where there is none, inside a notebook, what to put behind the page's
  async copyLink() {
    clearTimeout(this.saving);
    this.writeHash();
    const hash = `#${this.told()}`, { protocol, href } = window.location;
    const link = protocol === "about:" ? hash : href.replace(/#.*|$/, hash);
    let said = "copied";
    try {
      await navigator.clipboard.writeText(link);
    } catch { // not allowed here: show it, to be copied by hand
      window.prompt("A link to this view", link);
      said = "shown";
    }
    element("link").textContent = said;
    setTimeout(() => { element("link").textContent = "copy link"; }, 1500);
  }

  play() {
    if (this.playing) {
      clearInterval(this.playing);
      this.playing = null;
    } else {
      const last = this.recording.steps.length - 1;
      if (this.state.step === last) this.goTo(0);
      this.playing = setInterval(() => (this.state.step < last ? this.goTo(this.state.step + 1) : this.play()), 250);
    }
    element("play").textContent = this.playing ? "\u275A\u275A pause" : "\u25B6 play";
  }

  // the address keeps the view: #sample=0&step=12...
  readHash() {
    const { samples, contexts, steps, grid } = this.recording;
    const found = new URLSearchParams(window.location.hash.slice(1));
    const places = {
      sample: samples.map((sample) => String(sample.number)), context: contexts, layer: this.layers.map((layer) => layer.name),
    };
    const counts = { step: steps.length, token: this.perFrame, frame: grid[0], opacity: 101 };
    for (const [name, text] of found) {
      const place = name in places ? places[name].indexOf(text) : Number(text || NaN);
      const count = name in places ? places[name].length : counts[name];
      if (Number.isInteger(place) && place >= 0 && place < count) this.state[name] = place;
    }
  }

  told() {
    const { samples, contexts } = this.recording;
    const { sample, context, step, token, frame, opacity } = this.state;
    return new URLSearchParams({
      sample: samples[sample].number, context: contexts[context], step, layer: this.layer.name, token, frame, opacity,
    });
  }

  writeHash() {
    try {
      window.history.replaceState(null, "", `#${this.told()}`);
    } catch { /* inside a notebook there is no address to write */ }
  }

  draw() {
    for (const name of ["sample", "context", "layer", "step", "frame", "opacity"]) element(name).value = this.state[name];
    element("opacity-value").textContent = `${this.state.opacity} %`;
    element("frame-value").textContent = this.state.frame;
    for (const pane of this.panes) pane.draw();
  }
}

async function start() {
  if (!("DecompressionStream" in window)) {
    throw new Error("it needs Chrome 80, Firefox 113, Safari 16.4 or newer");
  }
  window.explorer = new Explorer(await readRecordings());
}

start().catch((error) => {
  const note = make("p", `This page cannot be shown: ${error.message}`);
  note.className = "failed";
  document.body.prepend(note);
  console.error(error);
});
