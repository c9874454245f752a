"""Connects many browsers to one engine: measures the pictures that each receives, and the cost for the engine.

    python demos/browsers.py --clients 1 20 100 200

The clients run in a separate process. Each has a WebSocket, over which it receives and confirms pictures of the camera,
and a stream of server-sent events, like the page. --asleep additional clients request motion JPEG and never read.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import time

import psutil
from websockets.asyncio.client import connect

from tttstream import models
from tttstream.live import Engine
from tttstream.live.web import serve


async def look(port: int, camera: str, until: float) -> int:
    """The number of pictures that one client receives."""
    count = 0
    url = f"ws://127.0.0.1:{port}/api/pictures"
    async with connect(url, compression=None, open_timeout=60, ping_interval=None) as client:
        await client.send(json.dumps({"watch": [{"camera": camera, "pane": "surprise", "width": 480}]}))
        while (left := until - time.monotonic()) > 0:
            try:
                await asyncio.wait_for(client.recv(), left)
            except asyncio.TimeoutError:
                break
            await client.send('{"shown": 0}')
            count += 1
    return count


async def listen(port: int, until: float) -> int:
    """The number of bytes of updates that one client receives."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /api/updates HTTP/1.1\r\nHost: localhost\r\n\r\n")
    count = 0
    while (left := until - time.monotonic()) > 0:
        try:
            count += len(await asyncio.wait_for(reader.read(65536), left))
        except asyncio.TimeoutError:
            break
    writer.close()
    return count


async def clients(port: int, camera: str, count: int, seconds: float) -> None:
    """Run all clients, and print the averages."""
    print("begun", flush=True)
    until = time.monotonic() + seconds
    looked = asyncio.gather(*(look(port, camera, until) for _ in range(count)))
    heard = asyncio.gather(*(listen(port, until) for _ in range(count)))
    pictures = await looked
    await heard
    print(json.dumps({"mean": sum(pictures) / count / seconds, "least": min(pictures) / seconds}))


def measure(engine: Engine, count: int, args: argparse.Namespace) -> list[str]:
    """One row: clients, asleep, pictures a second of a client and of the worst, frames a second, cores, MB."""
    camera, process = engine.cameras[0], psutil.Process()
    with serve(engine, port=0) as server:
        asleep = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(args.asleep)]
        for one in asleep:
            one.sendall(f"GET /api/cameras/{camera.id}/panes/frame/video HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        words = [server.port, camera.id, count, args.seconds]
        command = [sys.executable, __file__, "--as-clients", *map(str, words)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            child.stdout.readline()  # "begun", after it has loaded everything
            began, cpu, frames = time.monotonic(), sum(process.cpu_times()[:2]), camera.version
            said = json.loads(child.stdout.readline())
            took = time.monotonic() - began
        cores, fps = (sum(process.cpu_times()[:2]) - cpu) / took, (camera.version - frames) / took
        for one in asleep:
            one.close()
    rss = process.memory_info().rss / 1e6
    figures = [
        count,
        args.asleep,
        f"{said['mean']:.1f}",
        f"{said['least']:.1f}",
        f"{fps:.1f}",
        f"{cores:.2f}",
        f"{rss:.0f}",
    ]
    return [str(figure) for figure in figures]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 20, 100, 200])
    parser.add_argument("--asleep", type=int, default=20, help="additional clients that never read")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--model", default="base")
    parser.add_argument("--as-clients", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.as_clients:
        port, camera, count, seconds = args.as_clients
        asyncio.run(clients(int(port), camera, int(count), float(seconds)))
        return
    print(
        "| clients | never read | pictures a second | least | engine, fps | cores | MB |\n| ---: " + "| ---: " * 6 + "|"
    )
    with Engine(models.load(args.model, size=128), allowed=["walk"], expect=False) as engine:
        engine.add(0).wait(5, 60)
        for count in args.clients:
            print(f"| {' | '.join(measure(engine, count, args))} |", flush=True)


if __name__ == "__main__":
    main()
