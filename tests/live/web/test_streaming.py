"""Pictures and updates: to programs, to browsers, to clients that never read, and to two hundred at once."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import cv2
import httpx
import numpy as np
import psutil
import pytest
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tttstream.live import Engine
from tttstream.live.web import Server, app, serve, streaming
from tttstream.live.web.seats import FASTEST, PICTURES, Seats
from tttstream.live.web.sockets import AHEAD, Visitors

Until = Callable[..., Any]


@contextmanager
def watch(server: Server, engine: Engine, width: int = 160) -> Iterator[ClientConnection]:
    """A client that looks at the camera."""
    with connect(f"ws://127.0.0.1:{server.port}/api/pictures", compression=None) as client:
        view = {"camera": engine.cameras[0].id, "pane": "frame", "width": width}
        client.send(json.dumps({"watch": [view]}))
        yield client


def opened(message: Any) -> tuple[dict[str, Any], np.ndarray]:
    """The header and the picture of a message."""
    (length,) = struct.unpack(">I", message[:4])
    picture = cv2.imdecode(np.frombuffer(message[4 + length :], np.uint8), cv2.IMREAD_COLOR)
    return json.loads(message[4 : 4 + length]), picture


def test_pictures_have_the_time_of_their_capture(server: Server, engine: Engine) -> None:
    with watch(server, engine) as client:
        client.send('{"ping": 1.5}')
        seen: list[dict[str, Any]] = []
        now = None
        while len(seen) < 4 or now is None:
            message = client.recv(10)
            if isinstance(message, str):
                now = json.loads(message)["now"]
                continue
            header, picture = opened(message)
            client.send(json.dumps({"shown": header["view"]}))
            assert picture.shape[:2] == (header["size"][1], header["size"][0]) == (120, 160)
            seen.append(header)
    assert abs(now - time.monotonic()) < 60
    assert [header["pane"] for header in seen] == ["frame"] * 4
    assert all(one["version"] < other["version"] for one, other in itertools.pairwise(seen))
    assert all(one["captured"] < other["captured"] for one, other in itertools.pairwise(seen))
    assert seen[-1]["captured"] < time.monotonic()


def test_a_client_that_confirms_no_picture_gets_two_and_later_the_newest(server: Server, engine: Engine) -> None:
    with watch(server, engine) as client:
        versions = [opened(client.recv(10))[0]["version"] for _ in range(AHEAD)]
        engine.cameras[0].wait(versions[-1] + 8, 20)
        with pytest.raises(TimeoutError):
            client.recv(0.3)
        behind = engine.cameras[0].version
        client.send('{"shown": 0}')
        assert opened(client.recv(10))[0]["version"] >= behind


def test_a_client_changes_its_views(server: Server, engine: Engine) -> None:
    with watch(server, engine) as client:
        client.recv(10)
        view = {"camera": engine.cameras[0].id, "pane": "surprise", "width": 320}
        client.send(json.dumps({"watch": [view, {"camera": "none", "pane": "frame"}]}))
        header = None
        while header is None or header["pane"] != "surprise":
            header, picture = opened(client.recv(10))
            client.send(json.dumps({"shown": header["view"]}))
        assert picture.shape[1] == 320


def test_motion_jpeg(client: httpx.Client, engine: Engine) -> None:
    path = f"/api/cameras/{engine.cameras[0].id}/panes/surprise/video?width=160"
    with client.stream("GET", path) as stream:
        assert stream.headers["content-type"] == "multipart/x-mixed-replace; boundary=frame"
        data, parts = b"", []
        for chunk in stream.iter_bytes():
            data += chunk
            while (head := data.find(b"\r\n\r\n")) > 0:
                fields = dict(line.split(": ", 1) for line in data[:head].decode().split("\r\n") if ": " in line)
                whole = head + 4 + int(fields["Content-Length"])
                if len(data) < whole + 2:
                    break
                assert data[head + 4 : head + 6] == b"\xff\xd8"
                parts.append(float(fields["X-Captured"]))
                data = data[whole + 2 :]
            if len(parts) >= 3:
                break
    assert parts == sorted(parts)
    assert abs(parts[-1] - time.time()) < 60


def test_updates_contain_what_changed(client: httpx.Client, engine: Engine) -> None:
    engine.cameras[0].set(preset="high").result(10)
    told: dict[str, list[Any]] = {"status": [], "curve": [], "event": []}
    with client.stream("GET", "/api/updates") as stream:
        kind = ""
        for line in stream.iter_lines():
            name, _, value = line.partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                told[kind].append(json.loads(value))
            if len(told["status"]) > 2 and told["event"] and told["event"][-1]["ends"]:
                break
    engine.cameras[0].set(preset="normal").result(10)
    name = engine.cameras[0].id
    assert told["status"][0]["cameras"][0]["id"] == name
    numbers = [point[0] for curves in told["curve"] for point in curves.get(name, [])]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))  # none twice, none left out
    assert told["event"][-1]["ends"]["time_s"] > told["event"][-1]["begins"]["time_s"]


def test_updates_of_one_kind(client: httpx.Client) -> None:
    with client.stream("GET", "/api/updates?only=curve") as stream:
        kinds = set()
        for line in stream.iter_lines():
            kinds.add(line) if line.startswith("event") else None
            if kinds:
                break
    assert kinds == {"event: curve"}


def ask(port: int, path: str) -> socket.socket:
    """A client that asks for something endless and never reads."""
    raw = socket.create_connection(("127.0.0.1", port), timeout=5)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return raw


def test_clients_that_never_read_cost_nothing_and_delay_no_other(make_engine: Callable[..., Engine]) -> None:
    """Twelve of them would pile up some 1.5 MB with every frame."""
    with make_engine(("noise",)) as engine, serve(engine, port=0) as server:
        camera = engine.add(0)
        camera.wait(2, 20)
        with ExitStack() as clients:
            for path in [f"/api/cameras/{camera.id}/panes/frame/video?width=640", "/api/updates"] * 12:
                clients.enter_context(ask(server.port, path))
            for _ in range(6):
                clients.enter_context(watch(server, engine, width=640))
            client = clients.enter_context(watch(server, engine))
            read(client, 5)
            before = psutil.Process().memory_info().rss
            read(client, 40)
            grown = psutil.Process().memory_info().rss - before
        assert grown < 16e6


def test_a_client_that_never_reads_is_disconnected(
    make_engine: Callable[..., Engine], until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    seats = Seats()
    monkeypatch.setattr(app, "Seats", lambda: seats)
    monkeypatch.setattr(streaming, "PATIENCE_S", 0.5)
    with make_engine(("noise",)) as engine, serve(engine, port=0) as server:
        camera = engine.add(0)
        camera.wait(2, 20)
        with ask(server.port, f"/api/cameras/{camera.id}/panes/frame/video?width=640"):
            until(lambda: seats.taken == 1)
            until(lambda: seats.taken == 0)


def read(client: ClientConnection, count: int) -> None:
    for _ in range(count):
        header, _ = opened(client.recv(30))
        client.send(json.dumps({"shown": header["view"]}))


def test_two_hundred_clients_receive_pictures_and_updates(make_engine: Callable[..., Engine]) -> None:
    async def look(server: Server, view: str) -> int:
        async with connect_async(
            f"ws://127.0.0.1:{server.port}/api/pictures", compression=None, open_timeout=60
        ) as client:
            await client.send(view)
            for _ in range(3):
                await asyncio.wait_for(client.recv(), 60)
                await client.send('{"shown": 0}')
            return 3

    async def listen(server: Server) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /api/updates HTTP/1.1\r\nHost: localhost\r\n\r\n")
        count = 0
        while count < 3:
            line = await asyncio.wait_for(reader.readuntil(b"\n"), 60)
            count += line.startswith(b"event: status")
        writer.close()
        return count

    async def all_of_them(server: Server, view: str) -> list[int]:
        return await asyncio.gather(*(look(server, view) for _ in range(200)), *(listen(server) for _ in range(200)))

    with make_engine() as engine, serve(engine, port=0) as server:
        camera = engine.add(0)
        camera.wait(2, 20)
        view = json.dumps({"watch": [{"camera": camera.id, "pane": "frame", "width": 160}]})
        assert asyncio.run(all_of_them(server, view)) == [3] * 400
        frames = camera.version
        assert camera.wait(frames, 20) > frames  # the camera goes on


def test_the_server_closes_while_many_clients_are_connected(make_engine: Callable[..., Engine]) -> None:
    with make_engine() as engine:
        camera = engine.add(0)
        camera.wait(2, 20)
        server = serve(engine, port=0)
        with ExitStack() as clients:
            for _ in range(20):
                clients.enter_context(ask(server.port, "/api/updates"))
                clients.enter_context(watch(server, engine)).recv(20)
            server.close()
            assert not server.running
            with serve(engine, port=server.port) as again:  # the port is free
                assert httpx.get(f"http://127.0.0.1:{again.port}/api/status").status_code == 200


def test_a_client_above_the_limit_is_refused(engine: Engine, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Seats, "are_taken", True)
    assert httpx.get(f"{server.url}api/updates").status_code == 503
    url = f"ws://127.0.0.1:{server.port}/api/pictures"
    with connect(url) as client, pytest.raises(ConnectionClosed, match="too many"):
        client.recv(10)


def test_readers_share_the_rate_of_pictures() -> None:
    seats = Seats(2)
    with seats.seat(), seats.look():
        assert seats.pause_s == 1 / FASTEST
        assert not seats.are_taken
        with seats.seat():
            assert seats.are_taken
            with ExitStack() as looks:
                for _ in range(199):
                    looks.enter_context(seats.look())
                assert seats.pause_s == 200 / PICTURES
    assert not seats.are_taken


def jpeg(value: int, side: int = 48) -> bytes:
    """A message of a browser's camera."""
    data = cv2.imencode(".jpg", np.full((side, side, 3), value, np.uint8))[1].tobytes()
    return struct.pack(">d", 0.0) + data


def test_a_browsers_camera_continues_after_a_lost_connection(server: Server, engine: Engine, until: Until) -> None:
    url = f"ws://127.0.0.1:{server.port}/api/browser-camera"
    with connect(url) as client:
        client.send(json.dumps({"label": "<b>my camera</b>"}))
        said = json.loads(client.recv(10))
        camera = engine.camera(said["camera"])
        for value in (50, 60, 70):
            client.send(jpeg(value))
            assert json.loads(client.recv(10))["taken"] == (value - 40) // 10
            until(lambda: camera.version > 0)
        client.send(struct.pack(">d", 0.0) + b"no picture at all")
        assert "no picture" in json.loads(client.recv(10))["refused"]
        client.send(jpeg(1, 4200))
        assert "at most 4096" in json.loads(client.recv(10))["refused"]
        client.send('{"ping": 7}')
        assert json.loads(client.recv(10))["pong"] == 7
    frames = until(lambda: camera.version)
    with connect(url) as client:  # with a wrong key it is another camera
        client.send(json.dumps({"label": "x", "camera": camera.id, "key": "wrong"}))
        other = json.loads(client.recv(10))["camera"]
        assert other != camera.id
    with connect(url) as client:
        client.send(json.dumps({"label": "x", "camera": camera.id, "key": said["key"]}))
        assert json.loads(client.recv(10))["camera"] == camera.id
        client.send(jpeg(90))
        until(lambda: camera.version > frames)
        assert camera.label == "<b>my camera</b>"
    engine.remove(camera.id)
    engine.remove(other)


def test_a_browsers_camera_is_rate_limited(server: Server, engine: Engine) -> None:
    with connect(f"ws://127.0.0.1:{server.port}/api/browser-camera") as client:
        client.send(json.dumps({"label": "quick"}))
        name = json.loads(client.recv(10))["camera"]
        answers = []
        for _ in range(120):
            client.send(jpeg(3, 16))
        for _ in range(120):
            answers.append(json.loads(client.recv(10)))
    assert any("at most 40" in answer.get("refused", "") for answer in answers)
    engine.remove(name)


def test_a_browsers_camera_is_removed_some_time_after_its_connection(
    make_engine: Callable[..., Engine], until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Visitors.__init__, "__defaults__", (0.2,))
    with make_engine() as engine, serve(engine, port=0) as server:
        with connect(f"ws://127.0.0.1:{server.port}/api/browser-camera") as client:
            client.send(json.dumps({"label": "short"}))
            client.recv(10)
            assert len(engine.cameras) == 1
        until(lambda: not engine.cameras)


def test_a_cancellation_at_the_time_of_the_result_is_not_lost() -> None:
    async def cancelled_together() -> bool:
        result: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(streaming.within(10, result))
        await asyncio.sleep(0)
        result.set_result(1)
        task.cancel()
        await asyncio.wait({task})
        return task.cancelled()

    async def late() -> None:
        await streaming.within(0.01, asyncio.sleep(10))

    assert asyncio.run(cancelled_together())
    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(late())
