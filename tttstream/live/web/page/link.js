// The two connections to the server: what changes comes as server-sent events, pictures over a WebSocket. Both come
// back by themselves.

import { notice } from "./dom.js";

export async function call(method, path, body) {
  let answer;
  try {
    answer = await fetch(`/api/${path}`, {
      method,
      headers: body === undefined ? {} : { "Content-Type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch {
    notice("the server cannot be reached", true);
    return null;
  }
  if (answer.status === 401) {
    location.reload();
    return null;
  }
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({ error: `error ${answer.status}` }));
    notice(said.error, true);
    return null;
  }
  return answer.status === 204 ? true : answer.json();
}

// The server's clock as seen from here, from the quickest of the last answers.
export class Clock {
  constructor() {
    this.samples = [];
  }

  heard(sent, now) {
    const back = performance.now() / 1000;
    this.samples.push({ trip: back - sent, offset: now - (sent + back) / 2 });
    if (this.samples.length > 12) this.samples.shift();
    this.best = this.samples.reduce((one, other) => (other.trip < one.trip ? other : one));
  }

  now() {
    return this.best ? performance.now() / 1000 + this.best.offset : null;
  }
}

// Tries again after 0.5 s, then twice as long each time, up to 5 s.
class Again {
  constructor(open) {
    this.open = open;
    this.wait = 500;
  }

  later() {
    clearTimeout(this.timer);
    this.timer = setTimeout(this.open, this.wait * (0.8 + 0.4 * Math.random()));
    this.wait = Math.min(2 * this.wait, 5000);
  }

  done() {
    this.wait = 500;
  }
}

// Calls hear.status, hear.curve, hear.event with what the server tells, hear.state("open" | "closed").
export function listen(hear) {
  let source;
  let last = 0;
  const open = () => {
    source?.close();
    source = new EventSource("/api/updates");
    source.onopen = () => {
      again.done();
      last = Date.now();
      hear.state("open");
    };
    source.onerror = () => {
      source.close();
      hear.state("closed");
      fetch("/api/status").then((answer) => answer.status === 401 && location.reload(), () => {});
      again.later();
    };
    for (const kind of ["status", "curve", "event"]) {
      source.addEventListener(kind, (event) => {
        last = Date.now();
        hear[kind](JSON.parse(event.data));
      });
    }
  };
  const again = new Again(open);
  open();
  // A browser keeps six connections to a server for all its tabs: one that nobody sees gives its own back.
  document.addEventListener("visibilitychange", () => (document.hidden ? source.close() : open()));
  setInterval(() => {
    if (source.readyState === EventSource.OPEN && Date.now() - last > 4000) {
      hear.state("closed"); // a connection that broke without a word
      open();
    }
  }, 1000);
}

// The WebSocket of pictures. show(header, jpeg) is called with each; it calls shown(header) when it is on the screen.
export class Pictures {
  constructor(show) {
    this.show = show;
    this.clock = new Clock();
    this.views = "[]";
    this.again = new Again(() => this.open());
    this.open();
    setInterval(() => this.ping(), 2000);
  }

  open() {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    this.socket = new WebSocket(`${scheme}://${location.host}/api/pictures`);
    this.socket.binaryType = "arraybuffer";
    this.socket.onopen = () => {
      this.again.done();
      this.clock.samples = [];
      for (let i = 0; i < 4; i++) setTimeout(() => this.ping(), 60 * i);
      this.send(`{"watch":${this.views}}`);
    };
    this.socket.onmessage = (event) => this.heard(event.data);
    this.socket.onclose = () => this.again.later();
  }

  // A socket can close before its message "open" is handled.
  send(text) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(text);
  }

  ping() {
    this.send(JSON.stringify({ ping: performance.now() / 1000 }));
  }

  heard(data) {
    if (typeof data === "string") {
      const { pong, now } = JSON.parse(data);
      this.clock.heard(pong, now);
      return;
    }
    const length = new DataView(data).getUint32(0);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
    this.show(header, new Blob([new Uint8Array(data, 4 + length)], { type: "image/jpeg" }));
  }

  shown(header) {
    this.send(JSON.stringify({ shown: header.view }));
  }

  // views: [{camera, pane, width}, …]
  watch(views) {
    const text = JSON.stringify(views);
    if (text === this.views) return;
    this.views = text;
    this.send(`{"watch":${text}}`);
  }
}
