// The gallery of events: pictures of each, and why it is one.

import { clock, el, say, sync } from "./dom.js";
import { call } from "./link.js";

const SHOWN = 60;
const WHY = { frame: "the picture", expected: "what memory expected", surprise: "where it differs" };

export class Gallery {
  constructor() {
    this.events = new Map();
    this.list = document.getElementById("events");
    this.count = document.getElementById("event-count");
    this.dialog = document.getElementById("why");
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
    this.dialog.addEventListener("close", () => (this.open = null));
  }

  async load() {
    const events = await call("GET", `events?limit=${SHOWN}`);
    if (!events) return [];
    this.events.clear();
    for (const event of events) this.events.set(event.number, event);
    this.paint();
    return events;
  }

  add(event) {
    this.events.set(event.number, event);
    const numbers = [...this.events.keys()].sort((a, b) => a - b);
    for (const number of numbers.slice(0, -SHOWN)) this.events.delete(number);
    this.paint();
    if (this.open === event.number) this.explain(event);
  }

  paint() {
    const events = [...this.events.values()].sort((a, b) => b.number - a.number);
    say(this.count, events.length ? String(events.length) : "none yet");
    sync(
      this.list,
      events,
      (event) => event.number,
      (event) => this.make(event),
      (card, event) => this.change(card, event),
    );
    [...this.list.children].sort((a, b) => b.dataset.key - a.dataset.key).forEach((card) => this.list.append(card));
  }

  make(event) {
    const image = el("img", { alt: "", loading: "lazy", decoding: "async" });
    const text = el("div", {}, el("b", {}), el("span", { class: "muted" }), el("span", { class: "peak" }));
    const explain = () => this.explain(this.events.get(event.number));
    return el("button", { type: "button", class: "entry", onclick: explain }, image, text);
  }

  change(card, event) {
    const [image, text] = card.children;
    const what = ["surprise", "frame"].find((name) => event.has.includes(name));
    const source = what ? `/api/events/${event.number}/${what}` : "";
    const version = `${source}?${event.ends ? "whole" : "part"}`;
    if (source && card.dataset.version !== version) {
      card.dataset.version = version;
      image.src = source;
    }
    say(text.children[0], event.label);
    say(text.children[1], `${new Date(event.begins.at).toLocaleTimeString()} · at ${clock(event.begins.time_s)}`);
    say(text.children[2], event.peak.toFixed(1) + (event.ends ? ` for ${event.duration_s.toFixed(1)} s` : " now"));
    card.classList.toggle("now", !event.ends);
  }

  explain(event) {
    this.open = event.number;
    const parts = Object.entries(WHY)
      .filter(([name]) => event.has.includes(name))
      .map(([name, text]) => {
        const image = el("img", { src: `/api/events/${event.number}/${name}`, alt: text });
        return el("figure", {}, image, el("figcaption", {}, text));
      });
    const plays = { controls: true, autoplay: true, loop: true, muted: true, playsInline: true };
    const kept = event.has.includes("clip") && event.ends;
    const clip = kept ? el("video", { src: `/api/events/${event.number}/clip`, ...plays }) : null;
    const when = `${clock(event.begins.time_s)} (${new Date(event.begins.at).toLocaleString()})`;
    const rest = event.ends ? `It lasted ${event.duration_s.toFixed(1)} s.` : "It goes on.";
    const close = el("button", { type: "button", class: "quiet", onclick: () => this.dialog.close() }, "Close");
    this.dialog.replaceChildren(
      el("header", {}, el("h2", {}, `Event ${event.number} · ${event.label}`), close),
      el("p", {}, `The surprise rose to ${event.peak.toFixed(1)} at ${when}. ${rest}`),
      el("div", { class: "why" }, ...parts),
      ...(clip ? [clip] : []),
    );
    if (!this.dialog.open) this.dialog.showModal();
  }
}
