"""Network cameras for the tests, each in a process of its own: python servers.py mjpeg|rtsp PORT WIDTH HEIGHT MODE.

MODE: good; corrupt, each tenth picture is cut off; resize, each eighth picture begins another size.
"""

from __future__ import annotations

import base64
import io
import socket
import struct
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import av
import numpy as np
from PIL import Image

KIND, PORT, WIDTH, HEIGHT, MODE = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
STEP_S = 0.03


def picture(number: int) -> np.ndarray:
    """A bar that moves over a ramp."""
    width, height = (2 * WIDTH, 2 * HEIGHT) if MODE == "resize" and number // 8 % 2 else (WIDTH, HEIGHT)
    image = np.zeros((height, width, 3), np.uint8)
    image[:] = np.linspace(40, 200, width, dtype=np.uint8)[None, :, None]
    image[:, number % width : number % width + 8] = 255
    return image


class Camera(BaseHTTPRequestHandler):
    """Motion JPEG, as network cameras send it."""

    def do_GET(self) -> None:
        """Pictures until the client goes away."""
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        number = 0
        try:
            while True:
                data = io.BytesIO()
                Image.fromarray(picture(number)).save(data, "JPEG", quality=80)
                body = data.getvalue()
                if MODE == "corrupt" and number % 10 == 9:
                    body = body[: len(body) // 2]
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                self.wfile.write(head + body + b"\r\n")
                number += 1
                time.sleep(STEP_S)
        except OSError:
            return

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def units() -> Iterator[list[bytes]]:
    """H.264, the NAL units of each picture."""
    coder = av.CodecContext.create("libx264", "w")
    coder.width, coder.height, coder.pix_fmt = WIDTH, HEIGHT, "yuv420p"
    coder.time_base, coder.options = Fraction(1, 90_000), {"preset": "ultrafast", "tune": "zerolatency", "g": "8"}
    number = 0
    while True:
        frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24").reformat(format="yuv420p")
        frame.pts = number * 3600
        for packet in coder.encode(frame):
            stream = b"\0" + bytes(packet)
            yield [unit.rstrip(b"\0") for unit in stream.split(b"\0\0\1") if unit.strip(b"\0")]
        number += 1


def talk(client: socket.socket) -> None:
    """One client of RTSP, with RTP in the same connection (RFC 2326, RFC 6184)."""
    lines = client.makefile("rb")
    source = units()
    first = next(source)
    sets = ",".join(base64.b64encode(unit).decode() for unit in first if unit[0] & 31 in (7, 8))
    sdp = (
        "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=test\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n"
        f"a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1;sprop-parameter-sets={sets}\r\na=control:track\r\n"
    )
    while request := lines.readline().decode():
        headers = {}
        while line := lines.readline().decode().strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        method = request.split(" ")[0]
        more, body = "", ""
        if method == "OPTIONS":
            more = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
        elif method == "DESCRIBE":
            more, body = f"Content-Type: application/sdp\r\nContent-Length: {len(sdp)}\r\n", sdp
        elif method == "SETUP":
            more = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n"
            if "TCP" not in headers.get("transport", ""):
                client.sendall(f"RTSP/1.0 461 Unsupported transport\r\nCSeq: {headers['cseq']}\r\n\r\n".encode())
                continue
        client.sendall(f"RTSP/1.0 200 OK\r\nCSeq: {headers['cseq']}\r\n{more}\r\n{body}".encode())
        if method == "PLAY":
            break
    sequence, number, access = 0, 0, first
    while True:
        for place, unit in enumerate(access):
            last = place == len(access) - 1
            rtp = struct.pack(">BBHII", 0x80, 96 | (last << 7), sequence & 0xFFFF, number * 3600, 7) + unit
            client.sendall(struct.pack(">cBH", b"$", 0, len(rtp)) + rtp)
            sequence += 1
        number, access = number + 1, next(source)
        time.sleep(STEP_S)


def main() -> None:
    """Serve until killed."""
    if KIND == "mjpeg":
        ThreadingHTTPServer(("127.0.0.1", PORT), Camera).serve_forever()
    server = socket.create_server(("127.0.0.1", PORT))
    while True:
        client, _ = server.accept()
        try:
            talk(client)
        except OSError:
            client.close()


if __name__ == "__main__":
    main()
