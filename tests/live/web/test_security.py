"""Who gets in, from where, with how much, and what never gets out."""

from __future__ import annotations

import json
import logging
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tttstream.errors import ConfigError, OutputError
from tttstream.live import Engine
from tttstream.live.web import Server, access, serve
from tttstream.sources import open_source

TOKEN, SECRET = "a-token-of-these-tests", "hunter2-of-these-tests"
Make = Callable[..., Engine]


@pytest.fixture(scope="module")
def locked(engine: Engine) -> Iterator[Server]:
    """A server that wants a token."""
    with serve(engine, port=0, token=TOKEN) as server:
        yield server


@pytest.fixture
def stranger(locked: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{locked.port}") as client:
        yield client


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.org"])
def test_nothing_listens_beyond_loopback_without_a_token(engine: Engine, host: str) -> None:
    with pytest.raises(ConfigError, match="which requires a token"):
        serve(engine, host, 0)


@pytest.mark.parametrize("token", ["", "short", "x" * 15, "has a space in it, long", "has/a/slash/in/it/long"])
def test_a_short_token_or_one_with_characters_not_allowed_in_a_url_is_refused(token: str) -> None:
    with pytest.raises(ConfigError, match="a token has at least"):
        access.Access("0.0.0.0", token)


def test_a_generated_token_is_long_and_different_each_time() -> None:
    one, other = access.Access("0.0.0.0", "new"), access.Access("0.0.0.0", "new")
    assert len(one.token or "") >= 32
    assert one.token != other.token
    assert (one.token or "?") not in repr(one)


def test_every_path_but_the_form_requires_the_token(locked: Server, stranger: httpx.Client) -> None:
    paths = httpx.get(f"http://127.0.0.1:{locked.port}/api/openapi.json", headers=bearer()).json()["paths"]
    asked = 0
    for path, methods in paths.items():
        for method in methods:
            if (method, path) == ("post", "/api/session"):
                continue
            answer = stranger.request(method, re.sub(r"{\w+}", "1", path))
            assert answer.status_code in (401, 429), (method, path)
            asked += answer.status_code == 401
    assert asked > 15
    assert stranger.get("/").status_code == 401
    assert "main.js" not in stranger.get("/").text
    assert stranger.get("/page/main.js").status_code == 401


def bearer(token: str = TOKEN) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_the_token_is_accepted_as_a_header_or_as_a_session_cookie(locked: Server, stranger: httpx.Client) -> None:
    assert stranger.get("/api/status", headers=bearer()).status_code == 200
    assert stranger.post("/api/session", json={"token": "wrong"}).status_code == 401
    answer = stranger.post("/api/session", json={"token": TOKEN})
    assert answer.status_code == 204
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert TOKEN not in cookie
    assert stranger.get("/api/status").status_code == 200
    assert stranger.get("/").status_code == 200
    value = cookie.partition(";")[0]
    with connect(f"ws://127.0.0.1:{locked.port}/api/pictures", additional_headers={"Cookie": value}) as socket:
        socket.send('{"ping": 1}')
        assert json.loads(socket.recv(5))["pong"] == 1


def test_a_cookie_is_valid_after_a_restart_and_not_with_another_token() -> None:
    before, after = access.Access("0.0.0.0", TOKEN), access.Access("0.0.0.0", TOKEN)
    assert after.fits_cookie(before.cookie)
    assert not access.Access("0.0.0.0", TOKEN + "x").fits_cookie(before.cookie)
    assert before.cookie_name(1) != before.cookie_name(2)


def test_tokens_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, int]] = []
    whole = access.hmac.compare_digest

    def noted(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return whole(a, b)

    monkeypatch.setattr(access.hmac, "compare_digest", noted)
    door = access.Access("0.0.0.0", TOKEN)
    assert door.fits_token(TOKEN)
    assert not door.fits_token("")
    assert not door.fits_token(TOKEN[:-1])
    assert not door.fits_cookie("\ud800é")
    assert compared == [(32, 32)] * 4


def test_wrong_tokens_are_rate_limited(engine: Engine) -> None:
    with (
        serve(engine, port=0, token=TOKEN) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{server.port}") as client,
    ):
        statuses = [client.get("/api/status", headers=bearer(f"{number:020}")).status_code for number in range(14)]
        assert statuses[0] == 401
        assert statuses[-1] == 429
        assert client.post("/api/session", json={"token": TOKEN}).status_code == 429
        assert client.get("/api/status", headers=bearer()).status_code == 429  # the right one has to wait too


def test_the_token_is_in_no_log_and_in_no_request_line(
    engine: Engine, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    with serve(engine, port=0, token=TOKEN) as server:
        assert server.url.endswith(f"/#token={TOKEN}")  # behind #, which browsers keep to themselves
        base = f"http://127.0.0.1:{server.port}"
        httpx_level = logging.getLogger("httpx")
        httpx_level.setLevel(logging.WARNING)  # the client of this test writes down what it asks
        assert httpx.get(f"{base}/?token={TOKEN}").status_code == 401  # no token is taken from there
        httpx.post(f"{base}/api/session", json={"token": TOKEN})
        httpx.get(f"{base}/api/status", headers=bearer())
        with pytest.raises(InvalidStatus):
            connect(f"ws://127.0.0.1:{server.port}/api/pictures?token={TOKEN}", logger=logging.getLogger("quiet"))
    server_lines = [line for line in caplog.records if not line.name.startswith(("httpcore", "quiet", "asyncio"))]
    assert TOKEN not in " ".join(line.getMessage() for line in server_lines)
    out, err = capfd.readouterr()
    assert TOKEN not in out + err


@pytest.mark.parametrize(
    ("host", "open_to", "status"),
    [
        ("127.0.0.1:PORT", None, 200),
        ("localhost:PORT", None, 200),
        ("[::1]:9", None, 200),  # another port: it may be forwarded
        ("evil.example:PORT", None, 421),
        ("127.0.0.1.evil.example", None, 421),
        ("192.168.0.7:PORT", None, 421),  # open to this machine alone
        ("localhost@evil.example", None, 421),
        ("", None, 421),
        ("192.168.0.7:PORT", TOKEN, 200),
        ("evil.example:PORT", TOKEN, 421),
        ("porch.lan", TOKEN, 200),
    ],
)
def test_requests_for_another_host_name_are_refused(
    engine: Engine, host: str, open_to: str | None, status: int
) -> None:
    """A page of another site lets a name of its own resolve to this machine (DNS rebinding)."""
    with serve(engine, port=0, token=open_to, names=["porch.lan"] if open_to else []) as server:
        headers = {"Host": host.replace("PORT", str(server.port)), **bearer()}
        assert httpx.get(f"http://127.0.0.1:{server.port}/api/status", headers=headers).status_code == status
        if status != 200:
            assert raw_upgrade(server.port, headers["Host"], None) == status


def raw_upgrade(port: int, host: str, origin: str | None) -> int:
    """The status with which a WebSocket is answered."""
    lines = ["GET /api/pictures HTTP/1.1", f"Host: {host}", "Upgrade: websocket", "Connection: Upgrade"]
    lines += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="]
    lines += [] if origin is None else [f"Origin: {origin}"]
    with socket.create_connection(("127.0.0.1", port), timeout=5) as raw:
        raw.sendall("\r\n".join([*lines, "", ""]).encode())
        return int(raw.recv(4096).split()[1])


def test_requests_with_two_host_headers_or_none_are_refused(server: Server) -> None:
    for lines in ("", "Host: 127.0.0.1\r\nHost: 127.0.0.1\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as raw:
            raw.sendall(f"GET /api/status HTTP/1.1\r\n{lines}\r\n".encode())
            assert raw.recv(4096).split()[1] == b"400"


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "https://evil[", "http://127.0.0.1:1", "http://localhost.evil.example"]
)
def test_pages_of_other_sites_cannot_send_commands(
    server: Server, client: httpx.Client, engine: Engine, origin: str
) -> None:
    camera = engine.cameras[0]
    before = camera.status()["learn"]
    answer = client.patch(f"/api/cameras/{camera.id}", json={"learn": not before}, headers={"Origin": origin})
    assert answer.status_code == 403
    assert camera.status()["learn"] == before
    assert raw_upgrade(server.port, f"127.0.0.1:{server.port}", origin) == 403


def test_the_page_itself_can_send_commands(server: Server, client: httpx.Client, engine: Engine) -> None:
    origin = server.url.rstrip("/")
    answer = client.patch(f"/api/cameras/{engine.cameras[0].id}", json={"learn": True}, headers={"Origin": origin})
    assert answer.status_code == 200
    assert raw_upgrade(server.port, f"127.0.0.1:{server.port}", origin) == 101


def test_a_proxy_may_add_tls(client: httpx.Client, server: Server, engine: Engine) -> None:
    origin = f"https://127.0.0.1:{server.port}"
    path = f"/api/cameras/{engine.cameras[0].id}"
    assert client.patch(path, json={"learn": True}, headers={"Origin": origin}).status_code == 200


def test_pages_of_other_sites_cannot_read_and_can_link(client: httpx.Client) -> None:
    cross = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    camera = client.get("/api/status").json()["cameras"][0]["id"]
    for path in ("/api/status", f"/api/cameras/{camera}/panes/frame", "/api/updates", "/page/main.js", "/"):
        assert client.get(path, headers=cross).status_code == 403
    assert client.get("/", headers={**cross, "Sec-Fetch-Mode": "navigate"}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/page/main.js", "/api/status", "/api/nothing", "/api/cameras/none"])
def test_every_answer_has_the_security_headers(client: httpx.Client, path: str) -> None:
    headers = client.get(path).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "access-control-allow-origin" not in headers
    assert "server" not in headers


def test_the_page_inserts_text_as_text_and_loads_nothing_from_other_sites(saved_page: Path) -> None:
    for path in saved_page.iterdir():
        text = path.read_text("utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text), path
        assert not re.search(r"https?://(?!www\.w3\.org/)", text), path
        if path.suffix == ".html":
            assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", text), path


def test_passwords_in_addresses_are_not_sent_to_clients(
    make_engine: Make,
    until: Callable[..., Any],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    spec = f"http://someone:{SECRET}@127.0.0.1:9/stream.mjpg?key={SECRET}"
    said = []
    with make_engine((spec,), opener=open_source) as engine, serve(engine, port=0) as server:
        camera = engine.add(0)
        until(lambda: camera.status()["attempts"] > 0)
        with httpx.Client(base_url=server.url) as client:
            said += [
                client.get(path).text for path in ("/", "/api/status", f"/api/cameras/{camera.id}", "/api/openapi.json")
            ]
            said.append(client.post("/api/cameras", json={"number": 0}).text)
            with client.stream("GET", "/api/updates") as stream:
                said.append(next(text for text in stream.iter_text() if "status" in text))
    assert "127.0.0.1" in said[1]
    assert SECRET not in " ".join(said)
    assert "someone" not in " ".join(said)
    assert SECRET not in " ".join(line.getMessage() for line in caplog.records)
    out, err = capfd.readouterr()
    assert SECRET not in out + err


def test_a_port_in_use_and_an_invalid_host(engine: Engine, server: Server) -> None:
    with pytest.raises(OutputError, match="cannot listen on"):
        serve(engine, port=server.port)
    with pytest.raises(ConfigError, match="no address"):
        serve(engine, "no.such.host.invalid", 0, token=TOKEN)


def test_cookies_of_a_tls_server_are_sent_over_tls_only(engine: Engine, tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    words += ["-subj", "/CN=localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([openssl, *words], check=True, capture_output=True)
    trusted = ssl.create_default_context(cafile=certificate)
    trusted.check_hostname = False
    with serve(engine, port=0, token=TOKEN, tls=(certificate, key)) as server:
        address = f"127.0.0.1:{server.port}"
        assert server.url.startswith(f"https://{address}/")
        with httpx.Client(base_url=f"https://{address}", verify=trusted) as client:
            plain = client.post("/api/session", json={"token": TOKEN}, headers={"Origin": f"http://{address}"})
            assert plain.status_code == 403
            answer = client.post("/api/session", json={"token": TOKEN}, headers={"Origin": f"https://{address}"})
            assert "Secure" in answer.headers["set-cookie"]
        with connect(f"wss://{address}/api/pictures", ssl=trusted, additional_headers=bearer()) as client:
            client.send('{"ping": 2}')
            assert json.loads(client.recv(5))["pong"] == 2


def test_an_invalid_certificate(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "x.pem").write_text("nothing")
    with pytest.raises(ConfigError, match="certificate"):
        serve(engine, port=0, tls=(tmp_path / "x.pem", tmp_path / "x.pem"))
