"""The API: each operation has its documented effect, and the document lists every operation."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from starlette.routing import Route, WebSocketRoute

from tttstream import __version__
from tttstream.errors import ConfigError
from tttstream.live import Engine
from tttstream.live.web import Server, serve
from tttstream.live.web.access import Access
from tttstream.live.web.api import Api
from tttstream.live.web.app import SOCKETS, Application
from tttstream.live.web.operations import document
from tttstream.live.web.schema import check, number, record, text

Until = Callable[..., Any]


@pytest.fixture
def path(engine: Engine) -> str:
    """The path of the camera."""
    return f"/api/cameras/{engine.cameras[0].id}"


def test_the_openapi_document_describes_the_routes(client: httpx.Client) -> None:
    async def made() -> Application:
        return Application(None, Access(), 0)  # type: ignore[arg-type]

    routed: set[tuple[str, str]] = set()
    for route in asyncio.run(made())._starlette.routes:
        if isinstance(route, WebSocketRoute):
            routed.add(("GET", route.path))
        elif isinstance(route, Route):
            routed.update((method, route.path) for method in (route.methods or set()) - {"HEAD"})
    paths = client.get("/api/openapi.json").json()["paths"]
    documented = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert {one for one in routed if one[1].startswith("/api/")} - {("GET", "/api/openapi.json")} == documented


def test_the_openapi_document_in_docs_is_up_to_date(root: Path) -> None:
    operations = Api(None, None, None, None, None).operations()  # type: ignore[arg-type]
    written = json.loads((root / "docs" / "live-openapi.json").read_text("utf-8"))
    assert written | {"info": None} == document(operations, SOCKETS) | {"info": None}, "run docs/openapi.py"
    assert written["openapi"].startswith("3.1")
    names = [
        one["operationId"] for methods in written["paths"].values() for one in methods.values() if "operationId" in one
    ]
    assert len(names) == len(set(names)) == len(operations)
    page = (root / "docs" / "live.md").read_text("utf-8")
    for path, methods in written["paths"].items():
        for method in methods:
            assert f"| `{method.upper()} {path}` |" in page


def test_the_status(client: httpx.Client, engine: Engine) -> None:
    said = client.get("/api/status").json()
    assert [camera["id"] for camera in said["cameras"]] == [camera.id for camera in engine.cameras]
    assert said["allowed"][0]["camera"] == engine.cameras[0].id
    assert client.get("/api/openapi.json").json()["info"]["version"] == __version__


def test_settings_of_a_camera(client: httpx.Client, path: str) -> None:
    boxes = [[0.1, 0.2, 0.3, 0.4]]
    said = client.patch(path, json={"learn": False, "threshold": 4.5, "least_s": 0.5, "ignore": boxes}).json()
    assert (said["learn"], said["threshold"], said["least_s"], said["ignore"]) == (False, 4.5, 0.5, boxes)
    assert said["preset"] is None
    said = client.patch(path, json={"learn": True, "preset": "normal", "least_s": 0, "ignore": []}).json()
    assert (said["learn"], said["threshold"], said["preset"], said["ignore"]) == (True, 3.0, "normal", [])
    assert client.get(path).json()["preset"] == "normal"
    assert client.patch(path, json={"preset": "odd"}).status_code == 400


def test_the_memory_is_reset_saved_and_restored(client: httpx.Client, path: str) -> None:
    saved = client.post(f"{path}/save", json={"name": "noon"}).json()
    assert [one["name"] for one in saved["saved"]] == ["noon"]
    assert client.post(f"{path}/forget").status_code == 200
    assert client.post(f"{path}/restore", json={"name": "noon"}).status_code == 200
    answer = client.post(f"{path}/restore", json={"name": "midnight"})
    assert answer.status_code == 400
    assert "midnight" in answer.json()["error"]


def test_cameras_are_added_and_removed(client: httpx.Client, engine: Engine, until: Until) -> None:
    said = client.post("/api/cameras", json={"number": 1}).json()
    until(lambda: client.get(f"/api/cameras/{said['id']}").json()["version"] > 0)
    again = client.post("/api/cameras", json={"number": 1})
    assert again.status_code == 400
    assert client.delete(f"/api/cameras/{said['id']}").status_code == 204
    assert client.get(f"/api/cameras/{said['id']}").status_code == 404
    assert len(engine.cameras) == 1


def test_pictures_and_curves(client: httpx.Client, path: str) -> None:
    answer = client.get(f"{path}/panes/surprise", params={"width": 300})
    picture = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (240, 320, 3)  # the next of a few widths
    points = client.get(f"{path}/curve").json()
    last = points[-1][0]
    assert int(answer.headers["x-version"]) >= 1
    assert all(one[0] < other[0] for one, other in itertools.pairwise(points))
    assert all(point[0] > last for point in client.get(f"{path}/curve", params={"after": last}).json())
    assert client.get(f"{path}/panes/nothing").status_code == 404
    for wrong in ({"width": 10}, {"width": "x"}, {"other": 1}):
        assert client.get(f"{path}/panes/frame", params=wrong).status_code == 400


def test_an_event_has_pictures_that_explain_it(client: httpx.Client, path: str, until: Until) -> None:
    client.patch(path, json={"preset": "high"})
    event = until(lambda: client.get("/api/events").json())[-1]
    client.patch(path, json={"preset": "normal"})
    number = event["number"]
    assert client.get(f"/api/events/{number}").json()["camera"] == path.rsplit("/", 1)[-1]
    assert "frame" in event["has"]
    for what in event["has"]:
        answer = client.get(f"/api/events/{number}/{what}")
        assert answer.headers["content-type"] == "image/jpeg"
        assert answer.content[:2] == b"\xff\xd8"
    assert client.get(f"/api/events/{number}/clip").status_code == 404  # no folder for them here
    assert client.get(f"/api/events/{number}/event.json").status_code == 404
    assert client.get("/api/events/1000000").status_code == 404
    assert client.get("/api/events", params={"after": 10**6}).json() == []
    assert client.get("/api/events", params={"camera": "none", "limit": 5}).json() == []


def test_clips_are_videos(make_engine: Callable[..., Engine], tmp_path: Path, until: Until) -> None:
    with make_engine(events=tmp_path / "events") as engine, serve(engine, port=0) as server:
        camera = engine.add(0)
        camera.set(preset="high").result(10)
        with httpx.Client(base_url=server.url) as client:
            event = until(lambda: [one for one in client.get("/api/events").json() if "clip" in one["has"]])[0]
            answer = client.get(f"/api/events/{event['number']}/clip", headers={"Range": "bytes=0-99"})
            assert answer.status_code == 206
            assert answer.headers["content-type"] == "video/mp4"
            assert answer.content[4:8] == b"ftyp"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "follow", {"box": [0, 0, 1, 1]}),
        ("DELETE", "follow", None),
        ("POST", "teach", {"label": "cup"}),
        ("POST", "forget-label", {"label": "cup"}),
    ],
)
def test_operations_that_the_engine_does_not_support_are_refused(
    client: httpx.Client,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    path: str,
    body: dict[str, Any] | None,
) -> None:
    said = engine.status()
    monkeypatch.setattr(engine, "status", lambda: said | {"can": dict.fromkeys(said["can"], False)})
    answer = client.request(method, f"/api/cameras/{engine.cameras[0].id}/{path}", json=body)
    assert answer.status_code == 501


def test_things_are_followed_and_taught(client: httpx.Client, path: str) -> None:
    said = client.post(f"{path}/follow", json={"box": [0.2, 0.2, 0.6, 0.7], "name": "square"}).json()
    assert [thing["name"] for thing in said["follow"]] == ["square"]
    number = said["follow"][0]["number"]
    assert client.delete(f"{path}/follow", params={"number": number}).json()["follow"] == []
    said = client.post(f"{path}/teach", json={"label": "cup", "box": [0.2, 0.2, 0.6, 0.7]}).json()
    assert [taught["label"] for taught in said["taught"]] == ["cup"]
    assert client.post(f"{path}/forget-label", json={"label": "plate"}).status_code == 400
    assert client.post(f"{path}/forget-label", json={"label": "cup"}).json()["taught"] == []
    for box in ([0.5, 0.5, 0.5, 0.6], [0.6, 0.2, 0.2, 0.7]):
        assert client.post(f"{path}/follow", json={"box": box}).status_code == 400


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/nothing", 404),
        ("GET", "/nothing", 404),
        ("PUT", "/api/status", 405),
        ("GET", "/api/cameras/none", 404),
        ("POST", "/api/cameras/none/forget", 404),
        ("GET", "/api/updates?only=all", 400),
    ],
)
def test_refusals_are_json(client: httpx.Client, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]


def test_an_internal_error_is_logged_and_not_shown(
    server: Server,
    client: httpx.Client,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken() -> None:
        raise RuntimeError("a secret of the inside")

    monkeypatch.setattr(engine, "status", broken)
    answer = client.get("/api/status")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "a request broke off" in caplog.text


def test_schemas_check_what_they_describe() -> None:
    schema = record(
        ("name",), name=text(3), share=number(0, 1), list={"type": "array", "items": number(0, 9), "maxItems": 2}
    )
    check({"name": "abc", "share": 0, "list": []}, schema)
    for wrong, said in (
        ([], "expected an object, got an array"),
        ({}, "name is missing"),
        ({"name": "abcd"}, "name: expected 1 to 3 characters, got 4"),
        ({"name": None}, "name: expected a string, got null"),
        ({"name": "a", "share": 1.5}, "share: expected 0 to 1"),
        ({"name": "a", "share": True}, "share: expected a number, got a boolean"),
        ({"name": "a", "list": [1, 2, 3]}, "list: expected 0 to 2 items, got 3"),
        ({"name": "a", "list": [10]}, r"list\[0\]: expected 0 to 9"),
        ({"name": "a", "x": 1}, "expected name, share, list, got 'x'"),
    ):
        with pytest.raises(ConfigError, match=said):
            check(wrong, schema)
