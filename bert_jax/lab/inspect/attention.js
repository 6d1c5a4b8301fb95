// The attention of one head: chosen by its small picture or by the arrow keys, shown as lines or as a heat map.
// Texts enter the page as text nodes only.
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("attention-data").textContent);
  const bytes = Uint8Array.from(atob(data.weights), (c) => c.charCodeAt(0));
  const { tokens, layers, heads } = data;
  const size = tokens.length;
  const view = document.getElementById("attention-view");
  const caption = document.getElementById("attention-caption");
  const buttons = [...document.querySelectorAll("button.head")];
  let [layer, head] = [layers - 1, 0], kind = size > 40 ? "map" : "lines", token = -1;

  // Weights are stored as 255 times their square root.
  const weight = (row, column) => (bytes[((layer * heads + head) * size + row) * size + column] / 255) ** 2;

  // Begins with the head that reads most from single tokens other than the reader itself, [CLS] and [SEP].
  function sharpest() {
    let best = -1, found = [layer, head];
    for (layer = 0; layer < layers; layer++) for (head = 0; head < heads; head++) {
      let sum = 0;
      for (let i = 0; i < size; i++) {
        let most = 0;
        for (let j = 0; j < size; j++) if (j !== i && !data.special[j]) most = Math.max(most, weight(i, j));
        sum += most;
      }
      if (sum > best) [best, found] = [sum, [layer, head]];
    }
    return found;
  }

  function element(name, attributes, parent, text) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    parent.appendChild(made);
    return made;
  }

  function drawing(width, height) {
    view.replaceChildren();
    return element("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img" }, view);
  }

  // At least as wide as the words above the columns.
  const widest = Math.max(90, Math.min(Math.max(...tokens.map((t) => [...t].length)), 22) * 7.4 + 12);
  const short = (t) => ([...t].length > 22 ? [...t].slice(0, 21).join("") + "…" : t);

  function lines() {
    const step = 21, gap = 300, width = 2 * widest + gap;
    const svg = drawing(width, size * step + 30);
    element("text", { x: widest - 6, y: 14, "text-anchor": "end", class: "soft" }, svg, "token");
    element("text", { x: widest + gap + 6, y: 14, class: "soft" }, svg, "reads from");
    const y = (i) => 34 + i * step;
    for (let i = 0; i < size; i++) {
      if (token >= 0 && token !== i) continue;
      for (let j = 0; j < size; j++) {
        const w = weight(i, j);
        if (w < 0.01) continue;
        const at = { x1: widest, y1: y(i) - 4, x2: widest + gap, y2: y(j) - 4, class: "flow" };
        element("line", { ...at, "stroke-opacity": Math.min(1, w * 0.95 + 0.03), "stroke-width": 0.8 + 3.2 * w }, svg);
      }
    }
    for (let i = 0; i < size; i++) {
      const faded = token >= 0 && token !== i ? " faded" : "";
      const left = element("text", { x: widest - 6, y: y(i), "text-anchor": "end", class: "token" + faded, tabindex: 0 }, svg, short(tokens[i]));
      left.addEventListener("click", () => { token = token === i ? -1 : i; draw(); });
      const share = token >= 0 ? weight(token, i) : 1;
      const right = element("text", { x: widest + gap + 6, y: y(i), class: "token" + (share < 0.01 ? " faded" : "") }, svg, short(tokens[i]));
      if (token >= 0 && share >= 0.005) element("tspan", { class: "soft", dx: 6 }, right, share.toFixed(2));
    }
  }

  function map() {
    const cell = size > 60 ? 10 : size > 30 ? 15 : 24, top = widest * 0.82;
    const svg = drawing(widest + size * cell + 120, top + size * cell + 8);
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = size;
    const pixels = canvas.getContext("2d");
    for (let i = 0; i < size; i++) for (let j = 0; j < size; j++) {
      const shade = Math.sqrt(weight(i, j));
      pixels.fillStyle = `rgb(${247 - 239 * shade}, ${251 - 203 * shade}, ${255 - 148 * shade})`;
      pixels.fillRect(j, i, 1, 1);
    }
    const place = { x: widest, y: top, width: size * cell, height: size * cell };
    element("image", { ...place, href: canvas.toDataURL(), style: "image-rendering: pixelated", preserveAspectRatio: "none" }, svg);
    const every = cell < 12 ? 2 : 1;
    for (let i = 0; i < size; i += every) {
      const middle = i * cell + cell / 2 + 4;
      element("text", { x: widest - 6, y: top + middle, "text-anchor": "end", class: "token" }, svg, short(tokens[i]));
      element("text", { transform: `translate(${widest + middle}, ${top - 6}) rotate(-55)`, class: "token" }, svg, short(tokens[i]));
    }
    const frame = element("rect", { width: cell, height: cell, class: "frame", visibility: "hidden" }, svg);
    svg.addEventListener("mousemove", (event) => {
      const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
      const column = Math.floor(((event.clientX - box.left) * scale - widest) / cell);
      const row = Math.floor(((event.clientY - box.top) * scale - top) / cell);
      const inside = row >= 0 && column >= 0 && row < size && column < size;
      frame.setAttribute("visibility", inside ? "visible" : "hidden");
      if (!inside) return say();
      frame.setAttribute("x", widest + column * cell);
      frame.setAttribute("y", top + row * cell);
      say(`${tokens[row]} → ${tokens[column]}: ${weight(row, column).toFixed(3)}`);
    });
  }

  function say(more) {
    const hint = kind === "lines" ? "click a token on the left to see its weights" : "point at a cell for its weight";
    caption.textContent = `Layer ${layer + 1}, head ${head + 1}: ${more || hint}`;
  }

  function draw() {
    (kind === "lines" ? lines : map)();
    buttons.forEach((b, i) => b.setAttribute("aria-pressed", String(i === layer * heads + head)));
    for (const input of document.querySelectorAll("input[name=attention-kind]")) input.checked = input.value === kind;
    say();
  }

  function choose(newLayer, newHead) {
    layer = (newLayer + layers) % layers;
    head = (newHead + heads) % heads;
    draw();
  }

  buttons.forEach((button, i) => {
    button.addEventListener("click", () => choose(Math.floor(i / heads), i % heads));
    button.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!move) return;
      event.preventDefault();
      choose(layer + move[0], head + move[1]);
      buttons[layer * heads + head].focus();
    });
  });
  for (const input of document.querySelectorAll("input[name=attention-kind]"))
    input.addEventListener("change", () => { kind = input.value; token = -1; draw(); });
  document.getElementById("attention").classList.add("alive");
  [layer, head] = sharpest();
  draw();
})();
