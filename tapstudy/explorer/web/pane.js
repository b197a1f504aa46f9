// One recording of the page: where it is, its map, its legend and what it says of a token.

class Pane {
  constructor(recording, explorer, number) {
    Object.assign(this, { recording, explorer });
    this.part = (name) => element(number ? `${name}-${number + 1}` : name);
  }

  // a second pane has the elements of the first one, with ids of its own
  static copy(number) {
    for (const name of ["strip", "pane"]) {
      const made = element(name).cloneNode(true);
      for (const part of [made, ...made.querySelectorAll("[id]")]) part.id = `${part.id}-${number + 1}`;
      element(name).after(made);
    }
    document.body.classList.add("pair");
  }

  get state() { return this.explorer.state; }
  get hovered() { return this.explorer.hovered; }
  get perFrame() { return this.explorer.perFrame; }
  get token() { return this.explorer.token; }
  get layer() { return this.recording.layers.find(({ name }) => name === this.explorer.layer.name); }

  listen() {
    const { explorer } = this, map = this.part("map");
    map.addEventListener("mousemove", (event) => explorer.hover(this.tokenAt(event)));
    map.addEventListener("mouseleave", () => explorer.hover(null));
    map.addEventListener("click", (event) => explorer.set({ token: this.tokenAt(event) }));
    this.part("strip").addEventListener("click", (event) => {
      const box = this.part("strip").getBoundingClientRect();
      explorer.goTo(Math.floor(((event.clientX - box.left) / box.width) * this.recording.steps.length));
    });
    this.part("over-steps").addEventListener("click", (event) => {
      explorer.goTo(this.stepAt(event.clientX - this.part("over-steps").getBoundingClientRect().left));
    });
  }

  tokenAt(event) {
    const box = this.part("map").getBoundingClientRect();
    const [, rows, columns] = this.recording.grid;
    const column = Math.floor(((event.clientX - box.left) / box.width) * columns);
    const row = Math.floor(((event.clientY - box.top) / box.height) * rows);
    return Math.min(rows - 1, Math.max(0, row)) * columns + Math.min(columns - 1, Math.max(0, column));
  }

  draw() {
    this.drawWhere();
    this.drawStrip();
    this.drawMap();
    this.drawPicture();
    this.drawLegend();
    this.drawToken();
  }

  // the image alone, without the map over it
  drawPicture() {
    const image = this.recording.image(this.state), canvas = this.part("picture");
    canvas.parentElement.hidden = !image;
    if (!image) return;
    const side = 150 / Math.max(image.width, image.height);
    const width = Math.round(image.width * side), height = Math.round(image.height * side);
    drawImage(fit(canvas, width, height), image, width, height);
    this.part("picture-name").textContent = this.recording.imageName;
  }

  drawWhere() {
    const { recording, state } = this;
    const { steps, sigma } = recording;
    const parts = [`step ${steps[state.step]} (last: ${steps.at(-1)})`];
    if (sigma) parts.push(`noise level \u03C3 = ${sigma[state.step].toFixed(3)}`);
    parts.push(recording.isFull(state) ? "full step: the model runs, no predictor is chosen"
      : `skip step, k = ${recording.distance(state)} after the last full step`);
    this.part("where").textContent = parts.join("  \u00B7  ");
  }

  drawStrip() {
    const { recording, state } = this;
    const inset = 8, width = element("track").clientWidth - 2 * inset; // a slider's thumb keeps half its width inside
    const count = recording.steps.length;
    const pen = fit(this.part("strip"), width, 10);
    this.part("strip").style.marginLeft = `${inset}px`;
    for (let i = 0; i < count; i++) {
      pen.fillStyle = recording.isFull(state, i) ? "#3b434c" : i === state.step ? "#0072b2" : "#d8dde2";
      pen.fillRect((i * width) / count + 0.5, i === state.step ? 0 : 3, width / count - 1, i === state.step ? 10 : 5);
    }
  }

  colourOf(value) {
    const { colours } = this.recording, layer = this.layer;
    if (Number.isNaN(value)) return null;
    if (layer.kind === "category") return layer.colours.find(([known]) => known === value)?.[1] ?? null;
    if (value <= 0) return colours.nothing;
    const bend = layer.kind === "log" ? Math.log : (v) => v;
    const share = (bend(value) - bend(layer.low)) / (bend(layer.high) - bend(layer.low));
    return colours.scale[Math.round(Math.min(1, Math.max(0, share)) * (colours.scale.length - 1))];
  }

  drawMap() {
    const { recording, state } = this;
    const [, rows, columns] = recording.grid;
    const below = this.explorer.panes.length === 1 ? 330 : 380; // legend and picture are to be seen with the map
    const tallest = Math.max(360, window.innerHeight - below);
    const room = Math.min(this.part("left").clientWidth - 2, (tallest * columns) / rows);
    const side = Math.max(2, Math.floor(room / columns));
    const pen = fit(this.part("map"), side * columns, side * rows);
    drawImage(pen, recording.image(state), side * columns, side * rows);
    pen.globalAlpha = state.opacity / 100;
    for (let token = 0; token < this.perFrame; token++) {
      const colour = this.colourOf(recording.layer(this.layer.name, state, state.frame * this.perFrame + token));
      if (!colour) continue;
      pen.fillStyle = colour;
      pen.fillRect((token % columns) * side, Math.floor(token / columns) * side, side, side);
    }
    pen.globalAlpha = 1;
    const outline = (token, outer, inner) => {
      const x = (token % columns) * side, y = Math.floor(token / columns) * side;
      for (const [colour, width] of [[outer, 5], [inner, 2.5]]) {
        pen.strokeStyle = colour;
        pen.lineWidth = width;
        pen.strokeRect(x, y, side, side);
      }
    };
    outline(state.token, "#fff", "#000");
    if (this.hovered !== null && this.hovered !== state.token) outline(this.hovered, "#000", "#fff");
  }

  shares() {
    const counts = new Map();
    let all = 0;
    for (let token = 0; token < this.perFrame; token++) {
      const value = this.recording.layer(this.layer.name, this.state, this.state.frame * this.perFrame + token);
      if (Number.isNaN(value)) continue;
      counts.set(value, (counts.get(value) ?? 0) + 1);
      all += 1;
    }
    return (value) => (counts.has(value) ? `${Math.round((100 * counts.get(value)) / all)} %` : "");
  }

  drawLegend() {
    const { recording, layer } = this;
    const legend = this.part("legend");
    if (layer.kind === "category") {
      const share = this.shares();
      const table = make("table");
      const cell = (value) => {
        const colour = layer.colours.find(([known]) => known === value)[1];
        const dark = parseInt(colour.slice(1, 3), 16) + parseInt(colour.slice(3, 5), 16) + parseInt(colour.slice(5), 16) < 380;
        return make("td", share(value), { background: colour, color: dark ? "#fff" : "#000" });
      };
      const byShift = layer.name !== "chosen_order", byOrder = layer.name !== "chosen_shift";
      const shifts = byShift ? [...new Set(recording.predictors.map((p) => p.shift))].sort((a, b) => a - b) : [null];
      const orders = byOrder ? [...new Set(recording.predictors.map((p) => p.order))].sort((a, b) => a - b) : [null];
      if (byShift) {
        const head = make("thead"), row = make("tr");
        row.append(make("th", "horizon"), ...shifts.map((shift) => make("th", shift ? `k \u2212 ${shift}` : "k")));
        head.append(row);
        table.append(head);
      }
      const body = make("tbody");
      for (const order of orders) {
        const row = make("tr");
        row.append(make("th", order === null ? "any order" : `order ${order}`));
        for (const shift of shifts) {
          const value = !byOrder ? shift : !byShift ? order
            : recording.predictors.findIndex((p) => p.order === order && p.shift === shift);
          row.append(value < 0 ? make("td") : cell(value));
        }
        body.append(row);
      }
      table.append(body);
      legend.replaceChildren(make("div", `${layer.title}, with its share of the tokens at this step`), table);
      return;
    }
    const bar = make("div", "", { background: `linear-gradient(to right, ${recording.colours.scale.join(",")})` });
    bar.className = "bar";
    const ends = make("div");
    ends.className = "ends";
    const middle = layer.kind === "log" ? Math.sqrt(layer.low * layer.high) : (layer.low + layer.high) / 2;
    ends.append(...[`\u2264 ${shown(layer.low)}`, shown(middle), `\u2265 ${shown(layer.high)}`].map((t) => make("span", t)));
    const parts = [make("div", `${layer.title} (${layer.kind === "log" ? "logarithmic" : "linear"} scale)`), bar, ends];
    if (layer.name === "regret") {
      const zero = make("div", "0: the best predictor was chosen");
      zero.prepend(Object.assign(make("span", "", { background: recording.colours.nothing }), { className: "swatch" }));
      parts.push(zero);
    }
    legend.replaceChildren(...parts);
  }

  drawToken() {
    const { recording, state, token } = this;
    const { predictors, steps, colours, plain } = recording;
    const columns = recording.grid[2], place = token % this.perFrame;
    const choice = recording.choice(state, token), best = recording.best(state, token);
    const named = (p) => `order ${predictors[p].order}, horizon ${predictors[p].horizon}`;
    const error = (p) => recording.of("true_error", state, token, p);
    this.part("token").textContent = `Token in row ${Math.floor(place / columns)}, column ${place % columns}`
      + (recording.grid[0] > 1 ? `, frame ${state.frame}` : "") + (this.hovered === null ? "" : " (under the pointer)");
    this.part("verdict").textContent = choice < 0 || best < 0
      ? "No predictor is chosen at this step."
      : `Chosen: ${named(choice)}, true error ${shown(error(choice))}. `
        + (error(choice) <= error(best) ? "No predictor does better."
          : `Best: ${named(best)}, true error ${shown(error(best))}; regret ${shown(recording.arrays.regret[recording.place(state) * recording.tokens + token])}.`);
    const over = (pick) => steps.map((_, i) => recording.of("true_error", state, token, pick(i), i));
    const lines = [
      ...plain.map((p) => ({ text: named(p), values: over(() => p), colour: predictors[p].colour, width: 1.5, dash: [] })),
      { text: "best at each step (oracle)", values: over((i) => recording.best(state, token, i)), colour: colours.best, width: 2.5, dash: [5, 3] },
      { text: "chosen at each step", values: over((i) => recording.choice(state, token, i)), colour: colours.chosen, width: 2.5, dash: [] },
    ];
    const width = this.part("over-steps").parentElement.clientWidth;
    this.stepAt = drawOverSteps(this.part("over-steps"), width, {
      steps, lines, limits: recording.errorLimits, full: (i) => recording.isFull(state, i), now: state.step,
    });
    const orders = [...new Set(predictors.map((p) => p.order))].sort((a, b) => a - b);
    const kindOf = (p) => orders.indexOf(predictors[p].order) % 4;
    drawAtStep(this.part("at-step"), width, {
      title: `At step ${steps[state.step]}: every predictor`, chosen: choice, best: choice < 0 ? -1 : best, colours,
      shown: (p) => p === choice || p === best || recording.isDistinct(state, p), // identical ones would only overlap
      points: predictors.map((predictor, p) => ({
        proxy: recording.of("proxy_loss", state, token, p), truth: error(p), colour: predictor.colour, kind: kindOf(p),
      })),
    });
    if (!this.part("steps-keys").childElementCount) this.drawKeys(lines, orders, kindOf);
    this.drawForecasts(token, choice, best);
  }

  drawKeys(lines, orders, kindOf) {
    const { predictors, colours } = this.recording;
    const key = (text, size, draw) => {
      const made = make("span", text), canvas = make("canvas");
      draw(fit(canvas, size, 16));
      made.prepend(canvas);
      return made;
    };
    this.part("steps-keys").append(...lines.map((line) => key(line.text, 26, (pen) => {
      pen.strokeStyle = line.colour;
      pen.lineWidth = line.width;
      pen.setLineDash(line.dash);
      pen.beginPath();
      pen.moveTo(0, 8);
      pen.lineTo(26, 8);
      pen.stroke();
    })), key("full step", 12, (pen) => {
      pen.fillStyle = BAND;
      pen.fillRect(0, 1, 12, 14);
    }));
    this.part("step-keys").append(...orders.map((order) => {
      const p = predictors.findIndex((predictor) => predictor.order === order);
      return key(`order ${order}`, 14, (pen) => {
        pen.fillStyle = predictors[p].colour;
        drawMarker(pen, kindOf(p), 7, 8, 5);
      });
    }), key("chosen", 18, (pen) => drawRing(pen, 9, 8, 6, colours.chosen, [])),
    key("best", 18, (pen) => drawRing(pen, 9, 8, 6, colours.best, [4, 3])),
    make("span", "darker: longer horizon"));
  }

  drawForecasts(token, choice, best) {
    const { recording, state } = this;
    const scored = choice >= 0;
    const rows = recording.predictors.map((predictor, p) => {
      const row = make("tr");
      const same = scored && !recording.isDistinct(state, p);
      const notes = [p === choice && "chosen", scored && p === best && "best", same && "same as one above"];
      row.className = [p === choice && "chosen", scored && p === best && "best", same && "same"].filter(Boolean).join(" ");
      const name = make("td", String(predictor.order));
      name.prepend(Object.assign(make("span", "", { background: predictor.colour }), { className: "swatch" }));
      row.append(name, make("td", predictor.horizon), ...["proxy_loss", "true_error"].map((variable) =>
        make("td", shown(recording.of(variable, state, token, p)))), make("td", notes.filter(Boolean).join(", ")));
      return row;
    });
    this.part("forecasts").tBodies[0].replaceChildren(...rows);
  }
}
