// The groups of controls under a camera.

import { button, bytes, el, say, sync } from "./dom.js";
import { call } from "./link.js";

const RELEASES = ["pointerup", "pointercancel", "pointerleave", "keyup", "blur"];

function group(title, ...children) {
  return el("section", { class: "group" }, el("h3", {}, title), ...children);
}

function field(placeholder, ariaLabel, maxLength) {
  return el("input", { type: "text", placeholder, ariaLabel, maxLength });
}

// A line of a list: a name, a remark, and a button.
function entry(name, image, label, onclick, bare = true) {
  const act = button(image, label, onclick, { bare, kind: "quiet" });
  return el("li", {}, el("b", {}, name), el("span", { class: "muted" }), act);
}

function row(...children) {
  return el("div", { class: "row" }, ...children);
}

// A slider that sends its value at most five times a second, and does not jump while a hand is on it.
class Slider {
  constructor(label, least, most, step, text, send) {
    this.input = el("input", { type: "range", min: least, max: most, step });
    this.value = el("output", {});
    this.text = text;
    this.element = el("label", { class: "slider" }, el("span", {}, label), this.input, this.value);
    this.input.addEventListener("input", () => {
      this.held = Date.now();
      say(this.value, text(Number(this.input.value)));
      if (this.timer) return;
      this.timer = setTimeout(() => {
        this.timer = 0;
        send(Number(this.input.value));
      }, 200);
    });
  }

  set(value) {
    if (Date.now() - (this.held ?? 0) < 1500) return;
    this.input.value = value;
    say(this.value, this.text(value));
  }
}

// More to the right is more sensitive: the threshold falls from 20 to 0.5.
const toThreshold = (place) => Number((20 * (0.5 / 20) ** (place / 100)).toPrecision(3));
const toPlace = (threshold) => (100 * Math.log(threshold / 20)) / Math.log(0.5 / 20);

export class Sensitivity {
  constructor(path, presets) {
    const set = (settings) => call("PATCH", path, settings);
    const above = (place) => `above ${toThreshold(place).toFixed(1)}`;
    const seconds = (value) => `${value.toFixed(1)} s`;
    this.slider = new Slider("sensitivity", 0, 100, 0.5, above, (place) => set({ threshold: toThreshold(place) }));
    this.least = new Slider("lasting at least", 0, 10, 0.1, seconds, (value) => set({ least_s: value }));
    this.presets = Object.keys(presets).map((name) =>
      el("button", { type: "button", data: { name }, onclick: () => set({ preset: name }) }, name),
    );
    this.ignored = el("button", { type: "button", class: "quiet", hidden: true, onclick: () => set({ ignore: [] }) });
    this.element = group(
      "Events",
      el("div", { class: "choice", role: "group" }, ...this.presets),
      this.slider.element,
      this.least.element,
      this.ignored,
    );
  }

  change(status) {
    this.slider.set(toPlace(status.threshold));
    this.least.set(status.least_s);
    for (const preset of this.presets) preset.setAttribute("aria-pressed", preset.dataset.name === status.preset);
    this.ignored.hidden = !status.ignore.length;
    say(this.ignored, `ignore nothing (${status.ignore.length} drawn)`);
  }
}

export class Memory {
  constructor(path) {
    this.path = path;
    const learns = () => call("PATCH", path, { learn: this.learn.checked });
    this.learn = el("input", { type: "checkbox", role: "switch", onchange: learns });
    this.forget = button("i-forget", "Forget", () => this.sure());
    this.name = field("name of the copy", "name of the saved memory", 32);
    this.name.pattern = "[A-Za-z0-9_\\-]{1,32}";
    this.name.title = "letters, digits, _ and -";
    this.list = el("ul", { class: "list" });
    this.about = el("p", { class: "muted" });
    this.element = group(
      "Memory",
      row(el("label", { class: "switch" }, this.learn, el("span", {}, "learning")), this.forget),
      row(this.name, button("i-save", "Save", () => this.save())),
      this.list,
      this.about,
    );
  }

  sure() {
    const text = this.forget.querySelector("span");
    if (this.forget.classList.contains("alert")) call("POST", `${this.path}/forget`);
    const asks = this.forget.classList.toggle("alert");
    text.textContent = asks ? "Really?" : "Forget";
    clearTimeout(this.timer);
    if (asks) this.timer = setTimeout(() => this.forget.classList.contains("alert") && this.calm(), 3000);
  }

  calm() {
    this.forget.classList.remove("alert");
    this.forget.querySelector("span").textContent = "Forget";
  }

  save() {
    if (!this.name.reportValidity()) return;
    call("POST", `${this.path}/save`, { name: this.name.value || "saved" });
  }

  change(status) {
    if (document.activeElement !== this.learn) this.learn.checked = status.learn;
    sync(
      this.list,
      status.saved,
      (saved) => saved.name,
      ({ name }) => entry(name, "i-restore", "Restore", () => call("POST", `${this.path}/restore`, { name }), false),
      (item, saved) => say(item.children[1], `${saved.frames} frames`),
    );
    const kept = status.snapshot ? `, snapshot ${Math.round(status.snapshot.age_s)} s ago` : "";
    say(this.about, `${status.frames.toLocaleString()} frames learned in ${bytes(status.state_bytes)}${kept}`);
  }
}

export class Things {
  constructor(path) {
    this.name = field("its name, if it has one", "name of the next thing to follow", 40);
    this.list = el("ul", { class: "list" });
    this.path = path;
    this.none = el("p", { class: "muted" }, "Nothing is followed. Choose Follow under the picture.");
    this.element = group("Follow", this.name, this.none, this.list);
  }

  change(status) {
    this.none.hidden = status.follow.length > 0;
    sync(
      this.list,
      status.follow,
      (thing) => thing.number,
      ({ number }) => {
        const stop = () => call("DELETE", `${this.path}/follow?number=${number}`);
        return entry("", "i-close", "Stop following", stop);
      },
      (item, thing) => {
        item.className = `n${thing.number % 6}`;
        say(item.children[0], thing.name || `thing ${thing.number}`);
        say(item.children[1], thing.box ? `${Math.round(100 * thing.confidence)} %` : "out of sight");
      },
    );
  }
}

export class Teaching {
  constructor(path) {
    this.path = path;
    this.box = null; // of the thing in the picture; null for the whole of it
    this.name = field("what is it?", "name to teach", 40);
    this.hold = button("i-teach", "Hold to teach", () => {}, { kind: "primary hold" });
    this.said = el("ul", { class: "bars" });
    this.list = el("ul", { class: "list" });
    this.none = el("p", { class: "muted" }, "No name is known. Show a thing, type its name, hold the button.");
    this.element = group("Teach", row(this.name, this.hold), this.none, this.said, this.list);
    const release = () => (this.held = false);
    for (const name of ["pointerdown", "keydown"]) this.hold.addEventListener(name, (event) => this.begin(event));
    for (const name of RELEASES) this.hold.addEventListener(name, release);
    this.hold.addEventListener("mousedown", (event) => event.preventDefault()); // it would take the focus
    this.hold.addEventListener("contextmenu", (event) => event.preventDefault());
  }

  async begin(event) {
    if (this.held || (event.type === "keydown" && event.key !== " " && event.key !== "Enter")) return;
    const label = this.name.value.trim();
    if (!label) {
      this.name.focus();
      return;
    }
    this.held = true;
    this.hold.classList.add("held");
    const lesson = this.box ? { label, box: this.box } : { label };
    while (this.held && (await call("POST", `${this.path}/teach`, lesson))) {
      await new Promise((done) => setTimeout(done, 200));
    }
    this.held = false;
    this.hold.classList.remove("held");
  }

  change(status) {
    this.none.hidden = status.taught.length > 0;
    sync(
      this.said,
      status.said,
      (said) => said.label,
      (said) => el("li", {}, el("i", {}), el("b", {}, said.label), el("span", {})),
      (item, said) => {
        item.children[0].style.width = `${100 * said.probability}%`;
        say(item.children[2], `${Math.round(100 * said.probability)} %`);
      },
    );
    sync(
      this.list,
      status.taught,
      (taught) => taught.label,
      ({ label }) => {
        const forget = () => call("POST", `${this.path}/forget-label`, { label });
        return entry(label, "i-close", "Forget this name", forget);
      },
      (item, taught) => say(item.children[1], `${taught.examples} example${taught.examples === 1 ? "" : "s"}`),
    );
  }
}
