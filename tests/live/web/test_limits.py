"""How much a client may ask, and what of it is understood: bodies, names, paths, sources, rates, messages."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tttstream.live import Engine
from tttstream.live.web import Server, serve
from tttstream.live.web.rates import CLIENTS, Rate


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{" * 100_000, 413),
        (b"[" * 60_000, 400),
        (b"not json", 400),
        (b'{"learn": NaN}', 400),
        (b'{"threshold": NaN}', 400),
        (b'{"threshold": 1e9}', 400),
        (b'{"threshold": true}', 400),
        (b'{"learn": null}', 400),
        (b'{"other": 1}', 400),
        (b"[]", 400),
        (b'{"ignore": [[0, 0, 1]]}', 400),
        (b'{"ignore": [[0, 0, 1, 2]]}', 400),
        (json.dumps({"ignore": [[0, 0, 1, 1]] * 33}).encode(), 400),
        (json.dumps({"preset": "x" * 17}).encode(), 400),
    ],
)
def test_bodies_that_are_too_large_or_do_not_fit_the_schema(
    client: httpx.Client, engine: Engine, body: bytes, status: int
) -> None:
    path, json_type = f"/api/cameras/{engine.cameras[0].id}", {"Content-Type": "application/json"}
    answer = client.patch(path, content=body, headers=json_type)
    assert answer.status_code == status
    assert "\n" not in answer.json()["error"]


def test_bodies_other_than_json_are_refused(client: httpx.Client, engine: Engine) -> None:
    """A form of another site can send text, but not this type."""
    path = f"/api/cameras/{engine.cameras[0].id}/save"
    assert client.post(path, content=b'{"name": "x"}', headers={"Content-Type": "text/plain"}).status_code == 415


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "a\\b", "/etc/x", "a.b", "x" * 33, "é", "a\n", "%2e%2e"])
@pytest.mark.parametrize("command", ["save", "restore"])
def test_names_of_memories_cannot_leave_their_folder(
    tmp_path: Path, name: str, command: str, client: httpx.Client
) -> None:
    camera = client.get("/api/status").json()["cameras"][0]["id"]
    assert client.post(f"/api/cameras/{camera}/{command}", json={"name": name}).status_code == 400


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/page/../app.py",
            "/page/..%2fapp.py",
            "/page/%2e%2e/app.py",
            "/page/..%5capp.py",
            "/page//etc/passwd",
            "/page/",
        ),
        *(
            "/app.py",
            "/api/events/..%2f..",
            "/api/events/1/..%2fevent.json",
            "/api/cameras/..%2f",
            "/api/events/1e9/clip",
        ),
    ],
)
def test_files_outside_the_page_are_not_served(server: Server, path: str) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as raw:
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert answer.split()[1] == b"404"
    assert b"import" not in answer.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize(
    "body",
    [{"number": 99}, {"number": -1}, {"source": "/etc/passwd"}, {"number": "0"}, {"number": 0, "source": "0"}, {}],
)
def test_only_sources_of_the_command_line_can_be_added(
    client: httpx.Client, engine: Engine, body: dict[str, object]
) -> None:
    before = engine.cameras
    assert client.post("/api/cameras", json=body).status_code == 400
    assert engine.cameras == before


def test_a_rate_limit_allows_a_burst_and_then_a_fixed_rate() -> None:
    now = [0.0]
    rate = Rate(2, 3, lambda: now[0])
    assert [rate.allows("a") for _ in range(4)] == [True, True, True, False]
    assert rate.allows("b")
    now[0] = 0.5
    assert [rate.allows("a"), rate.allows("a")] == [True, False]
    now[0] = 100.0
    assert [rate.allows("a") for _ in range(4)] == [True, True, True, False]
    for number in range(2 * CLIENTS):
        rate.allows(str(number))
    assert len(rate._left) == CLIENTS


def test_commands_are_rate_limited(engine: Engine) -> None:
    with serve(engine, port=0) as server, httpx.Client(base_url=server.url) as client:
        path = f"/api/cameras/{engine.cameras[0].id}"
        statuses = {client.patch(path, json={"learn": 1}).status_code for _ in range(90)}
        assert statuses == {400, 429}
        assert client.get(path).status_code == 200  # reading goes on


@pytest.mark.parametrize("path", ["/api/pictures", "/api/browser-camera"])
@pytest.mark.parametrize("message", ["[" * 50_000, "nothing", "[]", '{"watch": 1}', '{"label": 1}', b"\x00\x01"])
def test_an_invalid_message_closes_a_websocket(server: Server, path: str, message: str | bytes) -> None:
    with connect(f"ws://127.0.0.1:{server.port}{path}") as socket:
        socket.send(message)
        with pytest.raises(ConnectionClosed):
            socket.recv(10)
        assert socket.close_code == 1008


def test_a_message_of_a_websocket_has_a_limit(server: Server, engine: Engine) -> None:
    with connect(f"ws://127.0.0.1:{server.port}/api/browser-camera") as socket:
        socket.send('{"label": "large"}')
        name = json.loads(socket.recv(5))["camera"]
        # the head of the message alone: data on its way would reset the connection before the reason arrives
        socket.socket.sendall(b"\x82\xff" + (2**21 + 9).to_bytes(8, "big") + bytes(4))
        with pytest.raises(ConnectionClosed):
            socket.recv(10)
        assert socket.close_code == 1009
    engine.remove(name)
