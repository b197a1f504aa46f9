"use strict";
// Reading: arrays from text, values at a place.

async function unpack(packed) {
  const text = atob(packed.data);
  const deflated = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
  const stream = new Blob([deflated]).stream().pipeThrough(new DecompressionStream("deflate"));
  const planes = new Uint8Array(await new Response(stream).arrayBuffer());
  const kinds = { int8: Int8Array, uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array };
  const Kind = kinds[packed.dtype];
  const count = planes.length / Kind.BYTES_PER_ELEMENT;
  const values = new Kind(count);
  if (Kind.BYTES_PER_ELEMENT === 1) {
    values.set(planes);
  } else {
    for (let i = 0; i < count; i++) values[i] = planes[i] | (planes[count + i] << 8);
  }
  return packed.scale ? decode(values, packed.scale) : values;
}

// Codes: 0 is missing, 1 is zero, then equal steps of the logarithm.
function decode(codes, scale) {
  const step = (scale.high - scale.low) / (scale.levels - 1);
  const table = new Float32Array(scale.levels + 2);
  table[0] = NaN;
  for (let code = 2; code < table.length; code++) table[code] = Math.exp(scale.low + (code - 2) * step);
  return Float32Array.from(codes, (code) => table[code]);
}

class Recording {
  constructor(about, arrays) {
    Object.assign(this, about);
    this.arrays = arrays;
    this.tokens = this.grid[0] * this.grid[1] * this.grid[2];
    const errors = arrays.true_error.filter((value) => value > 0);
    this.errorLimits = errors.length
      ? [errors.reduce((a, b) => Math.min(a, b)) / 1.1, errors.reduce((a, b) => Math.max(a, b)) * 1.1] : [1e-3, 1];
  }

  place(at, step = at.step) {
    return (at.sample * this.contexts.length + at.context) * this.steps.length + step;
  }

  isFull(at, step) { return this.arrays.is_full[this.place(at, step)] === 1; }
  distance(at, step) { return this.arrays.distance[this.place(at, step)]; }
  choice(at, token, step) { return this.arrays.choice[this.place(at, step) * this.tokens + token]; }
  isDistinct(at, predictor) {
    return this.arrays.is_distinct[this.place(at) * this.predictors.length + predictor] === 1;
  }

  of(name, at, token, predictor, step) {
    if (predictor < 0) return NaN;
    return this.arrays[name][(this.place(at, step) * this.tokens + token) * this.predictors.length + predictor];
  }

  best(at, token, step) {
    let found = -1, least = Infinity;
    for (let p = 0; p < this.predictors.length; p++) {
      const error = this.of("true_error", at, token, p, step);
      if (error < least) { least = error; found = p; }
    }
    return found;
  }

  layer(name, at, token) {
    const choice = this.choice(at, token);
    switch (name) {
      case "choice": return choice < 0 ? NaN : choice;
      case "chosen_order": return choice < 0 ? NaN : this.predictors[choice].order;
      case "chosen_shift": return choice < 0 ? NaN : this.predictors[choice].shift;
      case "chosen_proxy_loss": return this.of("proxy_loss", at, token, choice);
      case "chosen_error": return this.of("true_error", at, token, choice);
      default: return this.arrays[name][this.place(at) * this.tokens + token];
    }
  }

  // (y, x, band) of the image under the map, or null
  image(at) {
    const pixels = this.arrays.image;
    if (!pixels) return null;
    const shape = this.imageShape;
    const [height, width, bands] = shape.slice(-3);
    const size = height * width * bands;
    const first = size * this.imageDims.slice(0, -3).reduce((place, dim, i) => place * shape[i] + at[dim], 0);
    return { height, width, bands, pixels: pixels.subarray(first, first + size) };
  }
}

// All recordings of the page: one, or two side by side.
async function readRecordings() {
  const { beside, ...first } = JSON.parse(document.getElementById("data").textContent);
  const found = [];
  for (const about of beside ? [first, beside] : [first]) found.push(await readRecording(about));
  const limits = found.map((recording) => recording.errorLimits);
  const shared = [Math.min(...limits.map(([low]) => low)), Math.max(...limits.map(([, high]) => high))];
  for (const recording of found) recording.errorLimits = shared;
  return found;
}

async function readRecording(about) {
  const arrays = {};
  for (const [name, packed] of Object.entries(about.arrays)) {
    arrays[name] = await unpack(packed);
    if (name === "image") about.imageShape = packed.shape;
  }
  delete about.arrays;
  return new Recording(about, arrays);
}

function shown(value) {
  if (Number.isNaN(value)) return "\u2013";
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e-3 && size < 1e4 ? String(Number(value.toPrecision(3))) : Number(value.toPrecision(3)).toExponential();
}
