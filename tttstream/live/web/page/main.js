// The page: one card for each camera, the gallery, and the state of the connection.

import { Card } from "./card.js";
import { bytes, clock, el, say } from "./dom.js";
import { Gallery } from "./gallery.js";
import { call, listen, Pictures } from "./link.js";
import { possible, Webcam } from "./webcam.js";

const at = (name) => document.getElementById(name);
const NARROW = window.matchMedia("(max-width: 44rem)");
const COARSE = window.matchMedia("(pointer: coarse)").matches;
const cards = new Map();
const gallery = new Gallery();
let webcam = null;
let planned = 0;

const pictures = new Pictures((header, blob) => {
  const card = cards.get(header.camera);
  const done = () => pictures.shown(header);
  if (card) card.show(header, blob, pictures.clock, done);
  else done();
});

function look() {
  const views = document.hidden ? [] : [...cards.values()].flatMap((card) => card.views());
  pictures.watch(views.slice(0, 64));
}

// Asks for other pictures a moment later: many things may change at once.
function changed() {
  clearTimeout(planned);
  planned = setTimeout(look, 150);
}

function paint() {
  for (const card of cards.values()) card.curve.paint();
  requestAnimationFrame(paint);
}

function status(said) {
  say(at("model"), `${said.model}, ${said.size} px`);
  say(at("uptime"), clock(said.uptime_s));
  say(at("memory"), bytes(1e6 * said.rss_mb));
  const trouble = Object.values(said.trouble).filter((text) => text);
  at("trouble").hidden = !trouble.length;
  say(at("trouble"), trouble.join(" · "));
  const present = new Set(said.cameras.map((camera) => camera.id));
  for (const [id, card] of cards) {
    if (present.has(id)) continue;
    card.remove();
    cards.delete(id);
    changed();
  }
  for (const camera of said.cameras) {
    const card = cards.get(camera.id);
    if (!card) {
      add(camera, said);
      continue;
    }
    const before = `${card.status.panes} ${card.status.picture}`;
    card.change(camera);
    if (before !== `${camera.panes} ${camera.picture}`) changed();
  }
  at("cameras").classList.toggle("one", cards.size === 1);
  at("cameras").classList.toggle("many", cards.size > 2);
  for (const card of cards.values()) card.open(cards.size === 1 || (cards.size === 2 && !NARROW.matches), false);
  at("empty").hidden = cards.size > 0;
  offer(said.allowed);
}

function add(camera, said) {
  const card = new Card(camera, said.can, said.presets, changed);
  cards.set(camera.id, card);
  at("cameras").append(card.element);
  fill(card);
  for (const event of gallery.events.values()) if (event.camera === camera.id) card.curve.mark(event);
  changed();
}

async function fill(card) {
  const points = await call("GET", `${card.path}/curve`);
  if (!points) return;
  const later = card.curve.points;
  card.curve.points = [];
  card.curve.add(points);
  card.curve.add(later);
}

// What can be added: sources that the command line allows, and this device's camera.
let offered = "";
function offer(allowed) {
  const free = allowed.filter((source) => source.camera === null);
  const text = JSON.stringify([free, webcam !== null]);
  if (text === offered) return;
  offered = text;
  const item = (label, act, id = "") => {
    const choose = () => {
      at("add-menu").hidePopover();
      act();
    };
    return el("button", { type: "button", id, onclick: choose }, label);
  };
  const items = free.map(({ label, number }) => item(label, () => call("POST", "cameras", { number })));
  if (webcam) {
    items.push(item("stop this device's camera", () => webcam.stop()));
  } else if (possible) {
    items.push(item("this device's camera", () => share("user"), "own-camera"));
    if (COARSE) items.push(item("the camera on its back", () => share("environment")));
  } else {
    items.push(el("p", { class: "muted" }, "Browsers share their camera only with localhost or over https."));
  }
  at("add-menu").replaceChildren(...items);
}

async function share(facing) {
  const mine = new Webcam(pictures.clock, facing, () => { webcam = null; });
  if (await mine.start()) webcam = mine;
}

function state(now) {
  const open = now === "open";
  const over = cards.size > 0 && [...cards.values()].every(({ status }) => ["ended", "failed"].includes(status.state));
  say(at("connection"), open ? "connected" : over ? "the run has ended" : "reconnecting");
  at("connection").dataset.state = open ? "running" : over ? "ended" : "retrying";
  document.body.classList.toggle("away", !open);
  if (!open) return;
  for (const card of cards.values()) {
    card.restart();
    fill(card);
  }
  gallery.load().then((events) => {
    for (const event of events) cards.get(event.camera)?.curve.mark(event);
  });
}

listen({
  status,
  state,
  curve(curves) {
    for (const [id, points] of Object.entries(curves)) cards.get(id)?.curve.add(points);
  },
  event(event) {
    gallery.add(event);
    cards.get(event.camera)?.curve.mark(event);
  },
});
document.addEventListener("visibilitychange", changed);
window.addEventListener("scroll", changed, { passive: true });
requestAnimationFrame(paint);
