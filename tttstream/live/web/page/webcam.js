// This device's own camera as a source: JPEGs over a WebSocket, as many as the server takes.

import { notice } from "./dom.js";

const WIDTH = 640;
const RATE = 15; // pictures a second at most
const AHEAD = 2; // pictures under way

export const possible = Boolean(navigator.mediaDevices?.getUserMedia);

export class Webcam {
  // clock: of the server, as pictures.clock. facing: "user" or "environment". ended(): when it is over.
  constructor(clock, facing, ended) {
    this.clock = clock;
    this.facing = facing;
    this.ended = ended;
    this.known = null;
    this.wait = 500;
  }

  async start() {
    try {
      const video = { facingMode: this.facing, width: { ideal: WIDTH }, frameRate: { ideal: RATE } };
      this.media = await navigator.mediaDevices.getUserMedia({ video, audio: false });
    } catch (error) {
      notice(`the camera cannot be used: ${error.message}`, true);
      return false;
    }
    this.track = this.media.getVideoTracks()[0];
    this.track.addEventListener("ended", () => this.stop());
    this.video = document.createElement("video");
    this.video.muted = true;
    this.video.playsInline = true;
    this.video.srcObject = this.media;
    await this.video.play();
    this.canvas = document.createElement("canvas");
    this.connect();
    return true;
  }

  connect() {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    this.socket = new WebSocket(`${scheme}://${location.host}/api/browser-camera`);
    this.underWay = 0;
    this.ready = false;
    const label = this.track.label.slice(0, 64) || "browser";
    this.socket.onopen = ({ target }) => {
      if (target.readyState === WebSocket.OPEN) target.send(JSON.stringify({ label, ...this.known }));
    };
    this.socket.onmessage = (event) => this.heard(JSON.parse(event.data));
    this.socket.onclose = (event) => {
      if (this.over) return;
      if (event.code === 1008) {
        notice(event.reason, true);
        this.stop();
        return;
      }
      setTimeout(() => this.over || this.connect(), this.wait);
      this.wait = Math.min(2 * this.wait, 5000);
    };
  }

  heard(said) {
    if (said.camera) {
      this.known = { camera: said.camera, key: said.key };
      this.wait = 500;
      this.ready = true;
      this.next(this.socket);
      return;
    }
    this.underWay = Math.max(0, this.underWay - 1);
    if (said.refused) notice(said.refused, true);
  }

  async next(socket) {
    if (this.over || socket !== this.socket || socket.readyState !== WebSocket.OPEN) return;
    const begun = performance.now();
    if (this.underWay < AHEAD && this.video.videoWidth) {
      const captured = this.clock.now() ?? 0;
      const scale = Math.min(1, WIDTH / this.video.videoWidth);
      this.canvas.width = Math.round(this.video.videoWidth * scale);
      this.canvas.height = Math.round(this.video.videoHeight * scale);
      this.canvas.getContext("2d").drawImage(this.video, 0, 0, this.canvas.width, this.canvas.height);
      const blob = await new Promise((done) => this.canvas.toBlob(done, "image/jpeg", 0.8));
      if (blob && socket.readyState === WebSocket.OPEN) {
        const message = new Uint8Array(8 + blob.size);
        new DataView(message.buffer).setFloat64(0, captured);
        message.set(new Uint8Array(await blob.arrayBuffer()), 8);
        socket.send(message);
        this.underWay += 1;
      }
    }
    setTimeout(() => this.next(socket), Math.max(5, 1000 / RATE - (performance.now() - begun)));
  }

  stop() {
    if (this.over) return;
    this.over = true;
    this.media?.getTracks().forEach((track) => track.stop());
    this.socket?.close();
    this.ended();
  }
}
