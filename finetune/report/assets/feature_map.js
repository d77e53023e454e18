// Draws the map of images; the table below it says the same without this script.
(() => {
  "use strict";
  const source = document.getElementById("feature-map-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const figure = document.getElementById("feature-map-figure");
  const canvas = document.getElementById("feature-map-canvas");
  const tip = document.getElementById("feature-map-tip");
  const thumb = tip.querySelector(".map-thumb");
  const words = tip.querySelector("div");
  const select = document.getElementById("feature-map-select");
  const count = data.x.length;
  const margin = 14;
  let current = -1;
  let places = [];
  figure.hidden = false;

  const probe = document.createElement("span");
  probe.hidden = true;
  document.body.append(probe);
  function resolve(name) {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color;
  }

  function isHighlighted(i) {
    if (select.value === "") return true;
    return select.value === "wrong" ? data.wrong[i] === 1 : data.label[i] === Number(select.value);
  }

  function layout() {
    const width = canvas.parentElement.clientWidth;
    const height = Math.round(Math.min(width * 0.72, 560));
    const ratio = window.devicePixelRatio || 1;
    canvas.style.height = `${height}px`;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    // one scale for both axes, around the middle of the points
    const [minX, maxX] = [Math.min(...data.x), Math.max(...data.x)];
    const [minY, maxY] = [Math.min(...data.y), Math.max(...data.y)];
    const scale = Math.min(
      (width - 2 * margin) / Math.max(maxX - minX, 1),
      (height - 2 * margin) / Math.max(maxY - minY, 1),
    );
    places = data.x.map((x, i) => [
      width / 2 + (x - (minX + maxX) / 2) * scale,
      height / 2 - (data.y[i] - (minY + maxY) / 2) * scale,
    ]);
    draw();
  }

  function draw() {
    const context = canvas.getContext("2d");
    const ratio = window.devicePixelRatio || 1;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    const radius = count > 2000 ? 2.2 : count > 500 ? 3 : 4.5;
    const colors = data.hasClassColors ? data.names.map((_, i) => resolve(`--map-${i + 1}`)) : [];
    const [right, wrong, training, text] = ["--map-right", "--map-wrong", "--map-training", "--text"].map(resolve);
    // the most important points last
    const rank = (i) => (isHighlighted(i) ? 4 : 0) + (data.training[i] ? 0 : 1) + data.wrong[i];
    const order = [...places.keys()].sort((a, b) => rank(a) - rank(b));
    for (const i of order) {
      const [x, y] = places[i];
      const isPale = data.training[i] === 1;
      if (data.hasClassColors) context.fillStyle = colors[data.label[i]];
      else context.fillStyle = isPale ? training : data.wrong[i] ? wrong : right;
      context.globalAlpha = isHighlighted(i) ? (isPale && data.hasClassColors ? 0.35 : 0.9) : 0.07;
      context.beginPath();
      context.arc(x, y, isPale ? radius * 0.85 : radius, 0, 2 * Math.PI);
      context.fill();
      if (data.hasClassColors && data.wrong[i]) {
        context.strokeStyle = text;
        context.lineWidth = 1.6;
        context.beginPath();
        context.arc(x, y, radius + 2, 0, 2 * Math.PI);
        context.stroke();
      }
    }
    if (current >= 0) {
      context.globalAlpha = 1;
      context.strokeStyle = text;
      context.lineWidth = 2;
      context.beginPath();
      context.arc(...places[current], radius + 5, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  function describe(i) {
    const name = data.names[data.label[i]];
    const lines = [];
    if (data.training[i]) lines.push(["Training", name]);
    else if (data.predicted[i] < 0) lines.push([data.wrong[i] ? "Wrong, true" : "Right", name]);
    else if (data.wrong[i]) lines.push(["True", name], ["Predicted", data.names[data.predicted[i]]]);
    else lines.push(["Right", name]);
    return lines;
  }

  function show(i) {
    if (i === current) return;
    current = i;
    tip.hidden = i < 0;
    if (i >= 0) {
      const side = 112;
      const scale = side / data.sidePx;
      const rows = Math.ceil(count / data.columns);
      thumb.style.backgroundImage = `url("${data.sheet}")`;
      thumb.style.backgroundSize = `${data.columns * side}px ${rows * side}px`;
      thumb.style.backgroundPosition =
        `-${(i % data.columns) * data.sidePx * scale}px -${Math.floor(i / data.columns) * data.sidePx * scale}px`;
      words.replaceChildren(
        ...describe(i).map(([term, value]) => {
          const line = document.createElement("p");
          const label = document.createElement("span");
          label.className = "muted";
          label.textContent = `${term} `;
          line.append(label, value);
          return line;
        }),
      );
      const path = document.createElement("p");
      path.className = "path muted";
      path.textContent = data.paths[i];
      words.append(path);
      const [x, y] = places[i];
      const width = canvas.parentElement.clientWidth;
      const height = canvas.clientHeight;
      tip.style.left = `${Math.max(0, x + 14 + tip.offsetWidth > width ? x - 14 - tip.offsetWidth : x + 14)}px`;
      tip.style.top = `${Math.max(0, Math.min(y - 40, height - tip.offsetHeight))}px`;
    }
    draw();
  }

  function findNearest(x, y, limit) {
    let best = -1;
    let least = limit * limit;
    places.forEach(([px, py], i) => {
      const distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance < least && isHighlighted(i)) [best, least] = [i, distance];
    });
    return best;
  }

  function findInDirection(dx, dy) {
    if (current < 0) return findNearest(canvas.clientWidth / 2, canvas.clientHeight / 2, Infinity);
    let best = current;
    let least = Infinity;
    const [x, y] = places[current];
    places.forEach(([px, py], i) => {
      const along = (px - x) * dx + (py - y) * dy;
      const across = Math.abs((px - x) * dy) + Math.abs((py - y) * dx);
      const cost = along + 2 * across;
      if (along > 0 && across <= 2 * along && cost < least && isHighlighted(i)) [best, least] = [i, cost];
    });
    return best;
  }

  function findWrong() {
    for (let step = 1; step <= count; step += 1) {
      const i = (current + step + count) % count;
      if (data.wrong[i] && isHighlighted(i)) return i;
    }
    return current;
  }

  canvas.addEventListener("pointermove", (event) => show(findNearest(event.offsetX, event.offsetY, 14)));
  canvas.addEventListener("pointerdown", (event) => show(findNearest(event.offsetX, event.offsetY, 24)));
  canvas.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") show(-1); });
  canvas.addEventListener("blur", () => show(-1));
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.addEventListener("keydown", (event) => {
    if (event.key in arrows) show(findInDirection(...arrows[event.key]));
    else if (event.key === "Enter") show(findWrong());
    else if (event.key === "Escape") show(-1);
    else return;
    event.preventDefault();
  });
  select.addEventListener("change", () => { show(-1); draw(); });
  window.addEventListener("resize", () => { show(-1); layout(); });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  new MutationObserver(draw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  layout();
})();
