// One picture on a canvas, with the boxes that are drawn on it and the tools that draw them.

import { el, svg } from "./dom.js";

const CLICK = 0.2; // side of the box around a point that was clicked, as a part of the shorter side
const LEAST = 0.02; // a drag that is shorter is a click

export class Picture {
  constructor(className = "") {
    this.canvas = el("canvas", { width: 16, height: 12 });
    this.boxes = svg("svg", { viewBox: "0 0 1 1", preserveAspectRatio: "none" });
    this.names = el("div", { class: "names" });
    this.element = el("div", { class: `picture ${className}` }, this.canvas, this.boxes, this.names);
    this.version = -1;
    this.latencies = [];
    this.times = [];
  }

  // Draws a JPEG when the browser next paints. done() is called when it is painted.
  async show(header, blob, clock, done) {
    let bitmap;
    try {
      bitmap = await createImageBitmap(blob);
    } catch {
      done();
      return;
    }
    requestAnimationFrame(() => {
      if (header.version < this.version) {
        bitmap.close();
        done();
        return;
      }
      if (this.canvas.width !== bitmap.width || this.canvas.height !== bitmap.height) {
        this.canvas.width = bitmap.width;
        this.canvas.height = bitmap.height;
        this.element.style.setProperty("--ratio", bitmap.width / bitmap.height);
      }
      this.canvas.getContext("2d").drawImage(bitmap, 0, 0);
      bitmap.close();
      this.version = header.version;
      this.element.classList.add("live");
      const now = clock.now();
      if (now !== null) {
        this.latencies.push(1000 * (now - header.captured));
        if (this.latencies.length > 31) this.latencies.shift();
      }
      this.times.push(performance.now());
      if (this.times.length > 31) this.times.shift();
      done();
    });
  }

  // Milliseconds from capture to the screen: the median of the last pictures, null where none came lately.
  latency() {
    const last = this.times[this.times.length - 1];
    if (!this.latencies.length || performance.now() - last > 3000) return null;
    return [...this.latencies].sort((a, b) => a - b)[this.latencies.length >> 1];
  }

  restart() {
    this.version = -1;
    this.latencies = [];
    this.times = [];
  }

  // marks: [{box: [x0, y0, x1, y1], kind, name}]
  mark(marks) {
    const text = JSON.stringify(marks);
    if (text === this.marked) return;
    this.marked = text;
    this.boxes.replaceChildren();
    this.names.replaceChildren();
    for (const { box, kind, name } of marks) {
      const [x0, y0, x1, y1] = box;
      this.boxes.append(svg("rect", { x: x0, y: y0, width: x1 - x0, height: y1 - y0, class: kind }));
      if (name) {
        const label = el("span", { class: y0 < 0.08 ? `${kind} inside` : kind }, name);
        label.style.left = `${100 * x0}%`;
        label.style.top = `${100 * y0}%`;
        this.names.append(label);
      }
    }
    if (this.drawing) this.boxes.append(this.drawing);
  }

  // Lets people draw boxes: drawn(box, point) with the point where they only clicked. null: no more.
  draw(drawn) {
    this.drawn = drawn;
    this.element.classList.toggle("drawable", drawn !== null);
    if (this.listens) return;
    this.listens = true;
    let from = null;
    const at = (event) => {
      const frame = this.canvas.getBoundingClientRect();
      const inside = (value) => Math.min(1, Math.max(0, value));
      return [inside((event.clientX - frame.left) / frame.width), inside((event.clientY - frame.top) / frame.height)];
    };
    const box = (a, b) => [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])];
    const stop = () => {
      from = null;
      this.drawing?.remove();
      this.drawing = null;
    };
    this.element.addEventListener("pointerdown", (event) => {
      if (!this.drawn || event.button !== 0) return;
      from = at(event);
      this.element.setPointerCapture(event.pointerId);
      this.drawing = svg("rect", { class: "drawing" });
      this.boxes.append(this.drawing);
    });
    this.element.addEventListener("pointermove", (event) => {
      if (!from) return;
      const [x0, y0, x1, y1] = box(from, at(event));
      for (const [name, value] of Object.entries({ x: x0, y: y0, width: x1 - x0, height: y1 - y0 })) {
        this.drawing.setAttribute(name, value);
      }
    });
    this.element.addEventListener("pointerup", (event) => {
      if (!from) return;
      let drawnBox = box(from, at(event));
      let point = null;
      if (drawnBox[2] - drawnBox[0] < LEAST || drawnBox[3] - drawnBox[1] < LEAST) {
        point = from;
        const shorter = Math.min(this.canvas.width, this.canvas.height);
        const [w, h] = [(CLICK * shorter) / this.canvas.width / 2, (CLICK * shorter) / this.canvas.height / 2];
        const [x, y] = [Math.min(1 - w, Math.max(w, from[0])), Math.min(1 - h, Math.max(h, from[1]))];
        drawnBox = [x - w, y - h, x + w, y + h];
      }
      stop();
      this.drawn(drawnBox, point);
    });
    this.element.addEventListener("pointercancel", stop);
  }
}
