// The curve of surprise: the last points, the threshold, and the events.

import { el } from "./dom.js";

const POINTS = 600;
const BOTTOM = -2;

export class Curve {
  constructor() {
    this.canvas = el("canvas", { class: "curve", role: "img", ariaLabel: "surprise over time" });
    this.points = [];
    this.events = [];
    this.threshold = 3;
    this.top = 6;
  }

  // points: [[number, time_s, surprise, latency_ms], …], perhaps some that came before.
  add(points) {
    const known = this.points.length ? this.points[this.points.length - 1][0] : -1;
    this.points.push(...points.filter((point) => point[0] > known));
    this.points.splice(0, this.points.length - POINTS);
    this.dirty = true;
  }

  clear() {
    this.points = [];
    this.events = [];
    this.dirty = true;
  }

  mark(event) {
    this.events = this.events.filter((known) => known.number !== event.number);
    this.events.push({ number: event.number, from: event.begins.time_s, to: event.ends?.time_s ?? null });
    this.events.splice(0, this.events.length - 64);
    this.dirty = true;
  }

  height(value) {
    const knee = 2 * this.threshold;
    return value <= knee ? value : knee * (1 + Math.log(value / knee));
  }

  paint() {
    const frame = this.canvas.getBoundingClientRect();
    if (!this.dirty || !frame.width) return;
    this.dirty = false;
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(frame.width * ratio), Math.round(frame.height * ratio)];
    if (this.canvas.width !== width || this.canvas.height !== height) {
      this.canvas.width = width;
      this.canvas.height = height;
    }
    const style = getComputedStyle(this.canvas);
    const colour = (name) => style.getPropertyValue(name);
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    const values = this.points.map((point) => this.height(point[2] ?? 0));
    const wanted = Math.max(this.height(2 * this.threshold), 1.15 * Math.max(0, ...values));
    this.top += (wanted - this.top) * (wanted > this.top ? 1 : 0.08);
    const share = (value) => (Math.max(BOTTOM, value) - BOTTOM) / (this.top - BOTTOM);
    const y = (value) => (1 - share(value)) * (height - 4 * ratio) + 2 * ratio;
    const x = (place) => ((place + POINTS - values.length) / (POINTS - 1)) * width;

    for (const { from, to } of this.events) {
      const first = this.points.findIndex((point) => point[1] >= from - 1e-6);
      if (first < 0 || (to !== null && this.points[0][1] > to)) continue;
      let last = this.points.findIndex((point) => to !== null && point[1] > to);
      last = last < 0 ? values.length - 1 : last;
      context.fillStyle = colour("--alert-soft");
      context.fillRect(x(first), 0, Math.max(2 * ratio, x(last) - x(first)), height);
      context.fillStyle = colour("--alert");
      context.beginPath();
      context.arc(x(first), 5 * ratio, 3 * ratio, 0, 7);
      context.fill();
    }
    context.strokeStyle = colour("--line");
    context.lineWidth = ratio;
    context.beginPath();
    context.moveTo(0, y(0));
    context.lineTo(width, y(0));
    context.stroke();
    if (values.length > 1) {
      context.beginPath();
      values.forEach((value, place) => context.lineTo(x(place), y(value)));
      context.strokeStyle = colour("--curve");
      context.lineWidth = 1.5 * ratio;
      context.lineJoin = "round";
      context.stroke();
      context.lineTo(width, height);
      context.lineTo(x(0), height);
      context.fillStyle = colour("--curve-soft");
      context.fill();
    }
    context.setLineDash([4 * ratio, 4 * ratio]);
    context.strokeStyle = colour("--alert");
    context.lineWidth = ratio;
    context.beginPath();
    context.moveTo(0, y(this.height(this.threshold)));
    context.lineTo(width, y(this.height(this.threshold)));
    context.stroke();
    context.setLineDash([]);
    this.write(context, width, height, ratio, y(this.height(this.threshold)), colour);
  }

  // Words on the curve: what it is, from where an event begins, and how long ago its left end is.
  write(context, width, height, ratio, line, colour) {
    context.font = `${11 * ratio}px system-ui, sans-serif`;
    const put = (text, x, y, name) => {
      context.lineWidth = 3 * ratio;
      context.strokeStyle = colour("--panel");
      context.fillStyle = colour(name);
      context.strokeText(text, x, y);
      context.fillText(text, x, y);
    };
    const side = 6 * ratio;
    context.textAlign = "left";
    const above = line > 16 * ratio ? line - 4 * ratio : line + 12 * ratio;
    put(`event above ${this.threshold.toFixed(1)}`, side, above, "--alert");
    const last = this.points[this.points.length - 1];
    if (!last || this.points.length < 2) return;
    const seconds = last[1] - this.points[0][1];
    const from = ((POINTS - this.points.length) / (POINTS - 1)) * width;
    if (from < width - 110 * ratio) put(`${Math.round(seconds)} s ago`, from + side, height - 5 * ratio, "--muted");
    context.textAlign = "right";
    put("now", width - side, height - 5 * ratio, "--muted");
  }
}
