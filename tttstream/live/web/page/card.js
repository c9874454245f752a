// The card of one camera: its pictures, its curve, its numbers and its controls.

import { button, bytes, el, say } from "./dom.js";
import { Curve } from "./curve.js";
import { call } from "./link.js";
import { Picture } from "./picture.js";
import { Memory, Sensitivity, Teaching, Things } from "./controls.js";

const STATES = {
  opening: "opening",
  running: "live",
  stalled: "no new frames",
  retrying: "reconnecting",
  ended: "ended",
  failed: "failed",
};
const NUMBERS = {
  latency: "glass to glass",
  fps: "frames a second",
  dropped: "dropped frames",
  state: "state",
  surprise: "surprise",
};
// [mode, icon, label, what to do then]
const MODES = [
  ["look", "i-hand", "Look", "Only look: the picture takes no clicks."],
  ["follow", "i-target", "Follow", "Click a thing, or drag a box around it."],
  ["teach", "i-teach", "Teach", "Drag a box around the thing, or click for the whole picture. Then type its name and hold the button."],
  ["ignore", "i-mask", "Ignore", "Drag boxes over what shall raise no events. Click a box to remove it."],
];
const WAITS = { opening: "Opening the source …", running: "The picture comes soon …" };
const SIDE = { expected: "what memory expected here", world: "the world as remembered" };
const COARSE = window.matchMedia("(pointer: coarse)").matches;

export class Card {
  constructor(status, can, presets, changed) {
    this.id = status.id;
    this.path = `cameras/${encodeURIComponent(status.id)}`;
    this.changed = changed;
    this.picture = new Picture("main");
    this.side = new Map();
    this.curve = new Curve();
    this.heat = true;
    this.mode = can.follow && !COARSE ? "follow" : "look";
    this.title = el("h2", {}, status.label);
    this.state = el("span", { class: "pill" });
    this.happens = el("span", { class: "pill alert", hidden: true, data: { state: "event" } }, "event");
    this.waits = el("p", { class: "waits" });
    this.hint = el("p", { class: "hint muted" });
    this.reason = el("p", { class: "reason", hidden: true });
    this.panes = el("div", { class: "panes" });
    this.numbers = this.makeNumbers();
    this.sensitivity = new Sensitivity(this.path, presets);
    this.memory = new Memory(this.path);
    this.things = can.follow ? new Things(this.path) : null;
    this.teaching = can.teach ? new Teaching(this.path) : null;
    const groups = [this.things, this.teaching, this.sensitivity, this.memory].filter((group) => group !== null);
    this.groups = el("div", { class: "groups" }, ...groups.map((group) => group.element));
    this.opener = button("i-controls", "Controls", () => this.open(this.groups.hidden), { kind: "quiet" });
    this.element = el(
      "article",
      { class: "card" },
      el("header", {}, this.title, this.state, this.happens, el("span", { class: "gap" }), this.opener, this.makeRemove()),
      this.reason,
      el(
        "div",
        { class: "body" },
        el(
          "div",
          { class: "view" },
          el("div", { class: "stage" }, this.picture.element, this.waits),
          this.makeTools(can),
          this.hint,
          this.numbers.element,
          this.curve.canvas,
        ),
        el("div", { class: "more" }, this.panes, this.groups),
      ),
    );
    this.choose(this.mode);
    this.open(true, false);
    this.change(status);
    this.observer = new ResizeObserver(() => {
      this.curve.dirty = true;
      this.changed();
    });
    this.observer.observe(this.element);
  }

  makeRemove() {
    const remove = button("i-close", "Let this camera go", () => {
      if (remove.dataset.sure) call("DELETE", this.path);
      remove.dataset.sure = "yes";
      remove.classList.add("alert");
      remove.title = "Click again: its memory goes too";
      setTimeout(() => {
        delete remove.dataset.sure;
        remove.classList.remove("alert");
        remove.title = "Let this camera go";
      }, 3000);
    }, { bare: true, kind: "quiet" });
    return remove;
  }

  makeNumbers() {
    const values = {};
    const items = Object.entries(NUMBERS).map(([name, label]) => {
      values[name] = el("dd", {}, "–");
      return el("div", { class: name }, el("dt", {}, label), values[name]);
    });
    return { element: el("dl", { class: "numbers" }, ...items), values };
  }

  makeTools(can) {
    this.tools = new Map();
    this.flame = button("i-heat", "Surprise map", () => this.warm(!this.heat));
    this.flame.setAttribute("aria-pressed", this.heat);
    for (const [mode, image, label, hint] of MODES) {
      if (mode in can && !can[mode]) continue;
      const tool = button(image, label, () => {
        this.element.classList.add("chosen");
        this.choose(mode);
      });
      tool.title = hint;
      this.tools.set(mode, tool);
    }
    const modes = el("div", { class: "modes", role: "group", ariaLabel: "what a click does" }, ...this.tools.values());
    return el("div", { class: "tools" }, modes, this.flame);
  }

  // Shows the controls or puts them away. chosen: whether a person said so; the layout then leaves them alone.
  open(shown, chosen = true) {
    if (!chosen && this.chosen) return;
    this.chosen = chosen;
    this.groups.hidden = !shown;
    this.opener.setAttribute("aria-expanded", shown);
    this.opener.title = shown ? "Hide the controls" : "Show the controls";
  }

  // Shows the surprise map, or else what is followed.
  warm(heat) {
    this.heat = heat;
    this.flame.setAttribute("aria-pressed", heat);
    this.changed();
  }

  choose(mode) {
    this.mode = mode;
    for (const [name, tool] of this.tools) tool.setAttribute("aria-pressed", name === mode);
    say(this.hint, MODES.find(([name]) => name === mode)[3]);
    this.hint.hidden = mode === "look";
    if (["teach", "follow"].includes(mode) && this.status) this.open(true);
    this.picture.draw(mode === "look" ? null : (box, point) => this[mode](box, point));
    if (this.status) this.mark();
  }

  follow(box) {
    call("POST", `${this.path}/follow`, { box, name: this.things.name.value.trim() });
    this.things.name.value = "";
    this.warm(false);
  }

  teach(box, point) {
    this.teaching.box = point ? null : box;
    this.mark();
  }

  ignore(box, point) {
    const inside = ([x0, y0, x1, y1]) => point[0] >= x0 && point[0] <= x1 && point[1] >= y0 && point[1] <= y1;
    const boxes = this.status.ignore;
    const kept = point ? boxes.filter((known) => !inside(known)) : [...boxes, box];
    if (kept.length !== boxes.length) call("PATCH", this.path, { ignore: kept });
  }

  // The views that this card wants from the server.
  views() {
    if (!this.status.picture || !this.visible()) return [];
    const ratio = window.devicePixelRatio || 1;
    const width = (element) => Math.min(1280, Math.max(64, Math.round(element.clientWidth * ratio)));
    const pane = [this.heat ? "surprise" : "follow", "frame"].find((kind) => this.status.panes.includes(kind));
    const views = [{ camera: this.id, pane, width: width(this.picture.element) }];
    for (const [kind, picture] of this.side) views.push({ camera: this.id, pane: kind, width: width(picture.element) });
    return views;
  }

  visible() {
    const frame = this.element.getBoundingClientRect();
    return frame.bottom > -200 && frame.top < window.innerHeight + 200;
  }

  show(header, blob, clock, done) {
    const picture = this.side.get(header.pane) ?? this.picture;
    picture.show(header, blob, clock, done);
  }

  change(status) {
    this.status = status;
    say(this.title, status.label);
    this.state.dataset.state = status.state;
    const waits = status.state === "retrying" && status.retry_in_s !== null;
    say(this.state, (STATES[status.state] ?? status.state) + (waits ? ` in ${Math.ceil(status.retry_in_s)} s` : ""));
    const refusal = status.refusal && `last frame refused: ${status.refusal}`;
    const reason = (status.state === "running" ? refusal : status.reason) || status.trouble;
    this.reason.hidden = !reason;
    say(this.reason, reason || "");
    this.happens.hidden = status.event === null;
    this.element.classList.toggle("stale", status.state !== "running");
    const none = this.picture.element.classList.contains("live") ? "" : WAITS[status.state] ?? "No picture yet";
    say(this.waits, status.state === "stalled" ? `No new picture for ${Math.round(status.age_s)} s` : none);
    this.waits.hidden = !this.waits.textContent;
    const kinds = status.panes.filter((kind) => kind in SIDE);
    for (const kind of kinds) {
      if (this.side.has(kind)) continue;
      const picture = new Picture(kind);
      this.side.set(kind, picture);
      this.panes.append(el("figure", {}, picture.element, el("figcaption", {}, SIDE[kind])));
    }
    this.panes.hidden = !this.side.size;
    this.tell(status);
    this.curve.threshold = status.threshold;
    this.element.classList.toggle("event", status.event !== null);
    this.sensitivity.change(status);
    this.memory.change(status);
    this.things?.change(status);
    this.teaching?.change(status);
    this.mark();
  }

  tell(status) {
    const { latency, fps, dropped, state, surprise } = this.numbers.values;
    const seen = this.picture.latency();
    say(latency, seen === null ? "–" : `${Math.round(seen)} ms`);
    const [p50, p95, p99] = ["p50", "p95", "p99"].map((name) => status.latency_ms[name]?.toFixed(0) ?? "–");
    latency.title = `from capture to result: median ${p50} ms, p95 ${p95}, p99 ${p99}`;
    say(fps, status.fps === null ? "–" : status.fps.toFixed(1));
    fps.title = status.source_fps ? `the source gives ${status.source_fps.toFixed(1)}` : "";
    say(dropped, String(status.dropped));
    dropped.title = `policy ${status.policy}; damaged ${status.skipped}, refused ${status.refused}`;
    say(state, bytes(status.state_bytes));
    const shown = status.surprise?.toFixed(1).replace("-0.0", "0.0");
    say(surprise, shown === undefined ? "–" : (status.surprise > 0 ? "+" : "") + shown.replace("-", "−"));
    surprise.classList.toggle("alert", status.surprise > status.threshold);
  }

  mark() {
    const ignored = this.mode === "ignore" ? "ignored edit" : "ignored";
    const marks = this.status.ignore.map((box) => ({ box, kind: ignored, name: "" }));
    const outlined = !this.heat && this.status.panes.includes("follow") ? " outlined" : ""; // in the picture itself
    for (const { box, number, name } of this.status.follow) {
      if (box) marks.push({ box, kind: `thing n${number % 6}${outlined}`, name: name || `thing ${number}` });
    }
    for (const { box, label, probability } of this.status.said) {
      if (box) marks.push({ box, kind: "said", name: `${label} ${Math.round(100 * probability)} %` });
    }
    if (this.teaching?.box) marks.push({ box: this.teaching.box, kind: "lesson", name: "" });
    this.picture.mark(marks);
  }

  // The connection is new, and perhaps the server is.
  restart() {
    this.curve.clear();
    for (const picture of [this.picture, ...this.side.values()]) picture.restart();
  }

  remove() {
    this.observer.disconnect();
    this.element.remove();
  }
}
