// Drawing on canvas. Nothing here knows the state of the page.

const INK = "#1b1f24", SOFT = "#57606a", LINE = "#d0d7de", BAND = "#e4e8ec";
const FONT = '12px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif';

// A canvas of so many CSS pixels, sharp on any screen.
function fit(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  pen.font = FONT;
  return pen;
}

function drawImage(pen, image, width, height) {
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, width, height);
  if (!image) return;
  const sheet = document.createElement("canvas");
  sheet.width = image.width;
  sheet.height = image.height;
  const inner = sheet.getContext("2d");
  const pixels = inner.createImageData(image.width, image.height);
  for (let i = 0; i < image.width * image.height; i++) {
    for (let band = 0; band < 3; band++) {
      // one band is ink on paper
      pixels.data[4 * i + band] = image.bands >= 3 ? image.pixels[image.bands * i + band] : 255 - image.pixels[image.bands * i];
    }
    pixels.data[4 * i + 3] = 255;
  }
  inner.putImageData(pixels, 0, 0);
  pen.imageSmoothingEnabled = image.width > 128;
  pen.drawImage(sheet, 0, 0, width, height);
}

// Ticks of a logarithmic axis: decades, with some between where there are few.
function logTicks(low, high) {
  const decades = Math.log10(high / low);
  const parts = decades < 1 ? [1, 1.5, 2, 3, 4, 5, 7] : decades < 2.2 ? [1, 2, 5] : [1];
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    for (const part of parts) ticks.push(part * 10 ** power);
  }
  const seen = ticks.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
  return seen.length > 1 ? seen : [low, high];
}

function logScale([low, high], from, to) {
  const span = Math.log(high / low);
  const scale = (value) => from + (to - from) * Math.log(Math.max(value, low) / low) / span;
  scale.ticks = logTicks(low, high);
  return scale;
}

// Limits with room around the values, at least half a decade wide.
function around(values) {
  const seen = values.filter((value) => value > 0);
  if (!seen.length) return [1e-3, 1];
  let low = Math.min(...seen), high = Math.max(...seen);
  const missing = Math.max(0, 0.5 - Math.log10(high / low)) / 2 + 0.06;
  return [low / 10 ** missing, high * 10 ** missing];
}

function frame(pen, box, { title, xLabel, yLabel, x, y, xTicks }) {
  pen.lineWidth = 1;
  pen.fillStyle = SOFT;
  pen.strokeStyle = LINE;
  pen.textBaseline = "middle";
  pen.textAlign = "right";
  for (const tick of y.ticks) {
    pen.beginPath();
    pen.moveTo(box.left, y(tick));
    pen.lineTo(box.right, y(tick));
    pen.stroke();
    pen.fillText(shown(tick), box.left - 6, y(tick));
  }
  pen.textAlign = "center";
  pen.textBaseline = "top";
  let free = -Infinity;
  for (const tick of xTicks) {
    const text = shown(tick), half = pen.measureText(text).width / 2 + 4;
    if (x(tick) - half < free) continue;
    free = x(tick) + half;
    pen.fillText(text, x(tick), box.bottom + 6);
  }
  pen.fillText(xLabel, (box.left + box.right) / 2, box.bottom + 24);
  pen.save();
  pen.translate(12, (box.top + box.bottom) / 2);
  pen.rotate(-Math.PI / 2);
  pen.fillText(yLabel, 0, -6);
  pen.restore();
  pen.strokeStyle = SOFT;
  pen.beginPath();
  pen.moveTo(box.left, box.top);
  pen.lineTo(box.left, box.bottom);
  pen.lineTo(box.right, box.bottom);
  pen.stroke();
  pen.fillStyle = INK;
  pen.textAlign = "left";
  pen.font = FONT.replace("12px", "600 13px");
  pen.fillText(title, box.left, 2);
  pen.font = FONT;
}

function boxOf(width, height) {
  return { left: 56, right: width - 10, top: 24, bottom: height - 44 };
}

// lines: {values, colour, width, dash}; full: is a step full; now: the current step. Returns x -> step.
function drawOverSteps(canvas, width, { steps, lines, limits, full, now }) {
  const height = 250, pen = fit(canvas, width, height), box = boxOf(width, height);
  const gap = (box.right - box.left) / steps.length;
  const x = (step) => box.left + (step + 0.5) * gap;
  const y = logScale(limits, box.bottom - 4, box.top + 4);
  pen.fillStyle = BAND;
  steps.forEach((_, i) => { if (full(i)) pen.fillRect(x(i) - gap / 2, box.top, gap, box.bottom - box.top); });
  const every = Math.ceil(steps.length / 6 / 5) * 5 || 1;
  const places = steps.map((_, i) => i).filter((i) => i % every === 0);
  const ticks = (i) => x(steps.indexOf(i));
  frame(pen, box, {
    title: "Over steps: true error", xLabel: "step", yLabel: "true error (relative)", x: ticks, y,
    xTicks: places.map((i) => steps[i]),
  });
  pen.strokeStyle = INK;
  pen.lineWidth = 1;
  pen.beginPath();
  pen.moveTo(x(now), box.top);
  pen.lineTo(x(now), box.bottom);
  pen.stroke();
  pen.lineJoin = "round";
  for (const line of lines) {
    pen.strokeStyle = pen.fillStyle = line.colour;
    pen.lineWidth = line.width;
    pen.setLineDash(line.dash);
    pen.beginPath();
    line.values.forEach((value, i) => {
      if (Number.isNaN(value)) return;
      if (i && !Number.isNaN(line.values[i - 1])) pen.lineTo(x(i), y(value));
      else pen.moveTo(x(i), y(value));
    });
    pen.stroke();
    pen.setLineDash([]);
    if (!Number.isNaN(line.values[now])) {
      pen.beginPath();
      pen.arc(x(now), y(line.values[now]), line.width + 1.5, 0, 7);
      pen.fill();
    }
  }
  return (pixel) => Math.min(steps.length - 1, Math.max(0, Math.floor((pixel - box.left) / gap)));
}

// Shape by order, so that colour is not alone in telling them apart.
function drawMarker(pen, kind, x, y, size) {
  pen.beginPath();
  if (kind === 0) pen.arc(x, y, size, 0, 7);
  else if (kind === 1) pen.rect(x - size * 0.9, y - size * 0.9, size * 1.8, size * 1.8);
  else {
    const turn = kind === 2 ? -1 : 1;
    pen.moveTo(x, y + turn * size * 1.2);
    pen.lineTo(x + size * 1.1, y - turn * size * 0.8);
    pen.lineTo(x - size * 1.1, y - turn * size * 0.8);
    pen.closePath();
  }
  pen.fill();
  pen.stroke();
}

function drawRing(pen, x, y, size, colour, dash) {
  pen.strokeStyle = colour;
  pen.lineWidth = 2.5;
  pen.setLineDash(dash);
  pen.beginPath();
  pen.arc(x, y, size, 0, 7);
  pen.stroke();
  pen.setLineDash([]);
}

// points: {proxy, truth, colour, kind}; chosen and best: indices into points, or -1; shown: is a point drawn
function drawAtStep(canvas, width, { points, chosen, best, colours, title, shown: isShown }) {
  const height = 250, pen = fit(canvas, width, height), box = boxOf(width, height);
  const seen = points.filter((point, p) => isShown(p) && !Number.isNaN(point.proxy) && !Number.isNaN(point.truth));
  if (!seen.length) {
    pen.fillStyle = SOFT;
    pen.textAlign = "center";
    pen.fillText("A full step: the model ran, nothing was forecast.", width / 2, height / 2);
    return;
  }
  const x = logScale(around(seen.map((point) => point.proxy)), box.left + 6, box.right - 6);
  const y = logScale(around(seen.map((point) => point.truth)), box.bottom - 6, box.top + 6);
  frame(pen, box, { title, xLabel: "proxy loss", yLabel: "true error (relative)", x, y, xTicks: x.ticks });
  for (const point of [...seen].reverse()) {
    pen.fillStyle = point.colour;
    pen.strokeStyle = "#0008";
    pen.lineWidth = 0.8;
    drawMarker(pen, point.kind, x(point.proxy), y(point.truth), 5);
  }
  if (best >= 0) drawRing(pen, x(points[best].proxy), y(points[best].truth), 12, colours.best, [4, 3]);
  if (chosen >= 0) drawRing(pen, x(points[chosen].proxy), y(points[chosen].truth), 8.5, colours.chosen, []);
}
