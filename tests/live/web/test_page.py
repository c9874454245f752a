"""The page in a real browser, as a person uses it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tttstream.live import Engine
from tttstream.live.web import Server, serve

TOKEN = "a-token-of-these-tests"
Until = Callable[..., Any]
PAINTED = """canvas => {
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return canvas.width > 16 && new Set(pixels).size > 8;
}"""


@pytest.fixture(autouse=True)
def as_before(engine: Engine) -> Iterator[None]:
    """What a test changed is undone."""
    yield
    for camera in engine.cameras[1:]:
        engine.remove(camera.id)
    engine.cameras[0].set(learn=True, preset="normal", least_s=0.0, ignore=[]).result(10)


def test_the_page_shows_a_camera_with_its_numbers(home: Any, engine: Engine, until: Until) -> None:
    assert home.locator(".card h2").inner_text() == engine.cameras[0].label
    assert home.evaluate(PAINTED, home.query_selector(".picture.main canvas"))
    until(lambda: home.evaluate("/^\\d+ ms$/.test(document.querySelector('.numbers .latency dd').textContent)"))
    until(lambda: home.evaluate("Number(document.querySelector('.numbers .fps dd').textContent) > 1"))
    assert home.locator(".numbers .dropped dd").inner_text().isdigit()
    assert home.locator(".numbers .state dd").inner_text().endswith(("B", "kB", "MB"))
    until(lambda: home.evaluate(f"({PAINTED})(document.querySelector('.curve'))"))
    can = engine.status()["can"]
    groups = [*(["FOLLOW"] if can["follow"] else []), *(["TEACH"] if can["teach"] else []), "EVENTS", "MEMORY"]
    assert home.locator(".group h3").all_inner_texts() == groups
    assert home.title() == "tttstream live"


def test_the_curve_accepts_late_and_repeated_points(home: Any) -> None:
    """Updates and the history are two requests, and their answers may arrive in either order."""
    points = """import("/page/curve.js").then(({ Curve }) => {
        const curve = new Curve();
        for (const numbers of [[1, 2, 3, 4], [2, 3], [3, 4, 5]]) curve.add(numbers.map((number) => [number, 0, 0, 0]));
        return curve.points.map((point) => point[0]);
    })"""
    assert home.evaluate(points) == [1, 2, 3, 4, 5]


def test_sensitivity(home: Any, engine: Engine, until: Until) -> None:
    camera = engine.cameras[0]
    home.get_by_role("button", name="low", exact=True).click()
    until(lambda: camera.status()["preset"] == "low")
    home.wait_for_selector("button[data-name=low][aria-pressed=true]")
    home.locator(".slider input").first.fill("80")
    until(lambda: camera.status()["threshold"] < 1.1)
    home.wait_for_selector("button[data-name=low][aria-pressed=false]")
    home.locator(".slider input").nth(1).fill("2.5")
    until(lambda: camera.status()["least_s"] == 2.5)


def test_ignored_boxes_are_drawn_and_removed_by_a_click(home: Any, engine: Engine, until: Until) -> None:
    camera = engine.cameras[0]
    home.get_by_role("button", name="Ignore", exact=True).click()
    frame = home.locator(".picture.main").bounding_box()
    x, y, width, height = (frame[name] for name in ("x", "y", "width", "height"))
    home.mouse.move(x + 0.25 * width, y + 0.25 * height)
    home.mouse.down()
    home.mouse.move(x + 0.4 * width, y + 0.4 * height)
    home.mouse.move(x + 0.5 * width, y + 0.75 * height)
    home.mouse.up()
    until(lambda: camera.status()["ignore"])
    assert camera.status()["ignore"][0] == pytest.approx([0.25, 0.25, 0.5, 0.75], abs=0.02)
    home.wait_for_selector("rect.ignored")
    home.mouse.click(x + 0.3 * width, y + 0.5 * height)
    until(lambda: not camera.status()["ignore"])


def test_memory(home: Any, engine: Engine, until: Until, monkeypatch: pytest.MonkeyPatch) -> None:
    camera = engine.cameras[0]
    home.locator(".switch input").click()
    until(lambda: not camera.status()["learn"])
    home.locator(".switch input").click()
    until(lambda: camera.status()["learn"])
    home.get_by_placeholder("name of the copy").fill("no on")
    home.get_by_role("button", name="Save").click()  # the browser says that this is no name
    home.get_by_placeholder("name of the copy").fill("noon")
    home.get_by_role("button", name="Save").click()
    until(lambda: [saved["name"] for saved in camera.status()["saved"]] == ["noon"])
    before = camera.stream
    home.get_by_role("button", name="Restore").click()
    until(lambda: camera.stream is not before)
    forgotten = []
    monkeypatch.setattr(camera.stream, "reset", lambda: forgotten.append(1))
    home.get_by_role("button", name="Forget", exact=True).click()
    assert not forgotten  # it asks once more
    home.get_by_role("button", name="Really?").click()
    until(lambda: forgotten)
    home.get_by_role("button", name="Forget", exact=True).wait_for()


def test_a_thing_is_followed_and_released_by_clicks(home: Any, engine: Engine, until: Until) -> None:
    camera = engine.cameras[0]
    if not engine.status()["can"]["follow"]:
        pytest.skip("this engine cannot follow")
    home.get_by_role("button", name="Follow", exact=True).click()
    home.get_by_placeholder("its name, if it has one").fill("<i>square</i>")
    home.locator(".picture.main").click()
    followed = until(lambda: camera.status()["follow"])
    assert [thing["name"] for thing in followed] == ["<i>square</i>"]
    home.locator(".list b", has_text="<i>square</i>").wait_for()
    until(lambda: "follow" in camera.status()["panes"])
    home.get_by_role("button", name="Stop following").click()
    until(lambda: not camera.status()["follow"])


def test_a_thing_is_taught_while_the_button_is_held(home: Any, engine: Engine, until: Until) -> None:
    camera = engine.cameras[0]
    if not engine.status()["can"]["teach"]:
        pytest.skip("this engine cannot be taught")
    hold = home.get_by_role("button", name="Hold to teach")
    hold.click()  # without a name it asks for one
    assert home.evaluate("document.activeElement.placeholder") == "what is it?"
    home.get_by_placeholder("what is it?").fill("square")
    home.get_by_role("button", name="Teach", exact=True).click()
    frame = home.locator(".picture.main").bounding_box()
    home.mouse.move(frame["x"] + 0.2 * frame["width"], frame["y"] + 0.3 * frame["height"])
    home.mouse.down()
    home.mouse.move(frame["x"] + 0.6 * frame["width"], frame["y"] + 0.7 * frame["height"])
    home.mouse.up()
    home.wait_for_selector("rect.lesson")
    hold.hover()
    home.mouse.down()
    until(lambda: [one["examples"] for one in camera.status()["taught"] if one["label"] == "square"] > [1])
    home.mouse.up()
    home.locator(".list b", has_text="square").wait_for()
    home.get_by_role("button", name="Forget this name").click()
    until(lambda: not camera.status()["taught"])


def test_the_surprise_map_can_be_hidden(tab: Any, server: Server) -> None:
    with tab.expect_websocket() as opened:
        tab.goto(server.url)
    tab.wait_for_selector(".card .picture.main.live")
    with opened.value.expect_event("framesent", lambda text: '"pane":"frame"' in text):
        tab.get_by_role("button", name="Surprise map").click()
    assert tab.get_by_role("button", name="Surprise map").get_attribute("aria-pressed") == "false"


def test_sources_are_added_and_removed(home: Any, engine: Engine, until: Until) -> None:
    home.locator("#add").click()
    home.get_by_role("button", name="spare").click()
    until(lambda: len(engine.cameras) == 2)
    until(lambda: home.evaluate("document.querySelectorAll('.card .picture.main.live').length == 2"))
    remove = home.locator(".card").nth(1).get_by_role("button", name="Let this camera go")
    remove.click()
    assert len(engine.cameras) == 2
    remove.click()
    until(lambda: len(engine.cameras) == 1)
    until(lambda: home.evaluate("document.querySelectorAll('.card').length == 1"))


def test_the_gallery_shows_events_with_their_reasons(home: Any, engine: Engine, until: Until) -> None:
    engine.cameras[0].set(preset="high").result(10)
    home.wait_for_selector("#events .entry img")
    until(lambda: home.evaluate("document.querySelector('#events .entry img').naturalWidth > 0"))
    home.locator("#events .entry").last.click()
    home.wait_for_selector("dialog[open] .why img")
    assert home.locator("dialog figcaption").first.inner_text() == "the picture"
    home.keyboard.press("Escape")
    home.wait_for_selector("dialog:not([open])", state="attached")


@pytest.mark.parametrize("label", ['<img src=x onerror="document.title=1">', "</script><b>bold</b>", "a\u202eb"])
def test_labels_are_shown_as_plain_text(home: Any, engine: Engine, until: Until, label: str) -> None:
    camera = engine.add_browser(label)
    titles = [one.label for one in (engine.cameras[0], camera)]
    until(lambda: home.evaluate("[...document.querySelectorAll('.card h2')].map(title => title.textContent)") == titles)
    assert home.locator(".card img, .card script, .card h2 b").count() == 0
    assert home.title() == "tttstream live"


def test_the_browsers_own_camera(home: Any, engine: Engine, until: Until) -> None:
    home.locator("#add").click()
    home.locator("#own-camera").click()
    camera = until(lambda: next((one for one in engine.cameras if one.kind == "browser"), None))
    until(lambda: camera.version > 5)
    status = camera.status()
    assert "fake" in camera.label
    assert status["picture"][0] in (320, 640)
    assert 0 < status["latency_ms"]["p50"] < 10_000
    until(lambda: home.evaluate("document.querySelectorAll('.card .picture.main.live').length == 2"))
    home.locator("#add").click()
    home.get_by_role("button", name="stop this device").click()
    before = until(lambda: camera.version)
    assert camera.wait(before + 30, 1.0) < before + 30  # nothing comes any more


def test_the_page_reconnects_after_a_restart_of_the_server(
    tab: Any, make_engine: Callable[..., Engine], until: Until
) -> None:
    tab.forgiven += [
        "ERR_CONNECTION_REFUSED",
        "WebSocket connection",
        "ERR_INCOMPLETE_CHUNKED",
        "ERR_CONNECTION_RESET",
    ]
    with make_engine() as engine:
        engine.add(0)
        with serve(engine, port=0) as server:
            tab.goto(server.url)
            tab.wait_for_selector("#connection[data-state=running]")
            tab.wait_for_selector(".card .picture.main.live")
        tab.wait_for_selector("#connection[data-state=retrying]")
        assert tab.locator("#connection").inner_text() == "reconnecting"
        version = "document.querySelector('.card').textContent"
        assert tab.evaluate(version)  # the last that was known stays
        with serve(engine, port=server.port):
            tab.wait_for_selector("#connection[data-state=running]")
            until(lambda: tab.evaluate("/^\\d+ ms$/.test(document.querySelector('.numbers .latency dd').textContent)"))


def test_the_token_is_removed_from_the_address(tab: Any, engine: Engine) -> None:
    tab.forgiven += ["status of 401"]
    with serve(engine, port=0, token=TOKEN) as server:
        tab.goto(f"http://127.0.0.1:{server.port}/")
        tab.wait_for_selector("form")
        tab.locator("#token").fill("this-is-not-the-token")
        tab.get_by_role("button", name="Open").click()
        tab.get_by_text("the token is wrong").wait_for()
        tab.goto("about:blank")
        with tab.expect_request("**/api/updates") as request:
            tab.goto(server.url)
        assert TOKEN not in str(request.value.headers)
        tab.wait_for_selector("#connection[data-state=running]")
        assert tab.url == f"http://127.0.0.1:{server.port}/"
        assert tab.evaluate("document.cookie") == ""  # scripts do not see it
        assert TOKEN not in tab.evaluate("JSON.stringify([history.state, {...localStorage}, {...sessionStorage}])")
        tab.goto(f"http://127.0.0.1:{server.port}/")
        tab.wait_for_selector("#connection[data-state=running]")
        tab.goto("about:blank")


@pytest.mark.parametrize("width", [360, 768])
def test_the_page_fits_the_screen_of_a_phone(home: Any, width: int, until: Until) -> None:
    home.set_viewport_size({"width": width, "height": 800})
    until(lambda: home.evaluate("document.documentElement.scrollWidth <= innerWidth"))
    frame = home.locator(".picture.main").bounding_box()
    assert frame["width"] >= 0.9 * min(width, 480)


def test_the_controls_can_be_hidden_and_an_ended_run_is_marked(tab: Any, make_engine: Callable[..., Engine]) -> None:
    """With three cameras the pictures come first; after the run the page keeps what it last showed."""
    tab.forgiven += ["ERR_CONNECTION_REFUSED", "WebSocket connection", "ERR_INCOMPLETE_CHUNKED", "ERR_CONNECTION_RESET"]
    with make_engine(allowed=("one", "two", "three")) as engine, serve(engine, port=0) as server:
        for number in range(3):
            engine.add(number)
        tab.goto(server.url)
        tab.wait_for_selector("#cameras.many .card:nth-child(3) .picture.main.live")
        groups = tab.locator(".groups")
        assert [groups.nth(number).is_visible() for number in range(3)] == [False] * 3
        tab.get_by_role("button", name="Controls").nth(1).click()
        assert [groups.nth(number).is_visible() for number in range(3)] == [False, True, False]
        engine.stop()
        tab.locator(".card .pill", has_text="ended").nth(2).wait_for()
        assert tab.locator(".card").count() == 3
    tab.get_by_text("the run has ended").wait_for()
    assert tab.locator(".card .picture.main.live").count() == 3
