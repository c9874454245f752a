"""`tttstream live`: watches cameras, videos and embedded sources, each with its own memory, on a browser page."""

from __future__ import annotations

import argparse
import re
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tttstream.cli import arguments
from tttstream.cli.live_sources import INSTEAD, default_source, options_of
from tttstream.cli.numbers import whole
from tttstream.errors import ConfigError, DependencyError, OutputError, SourceError

if TYPE_CHECKING:
    from tttstream.live import Camera, Engine

PORT = 8230
EPILOG = f"""\
SOURCE is any source of `tttstream watch`: a camera number, an RTSP or MJPEG address, a video, a folder of images, a
ROS 2 bag, gym:ENV_ID, walk, places. The default is camera 0, or the embedded source {INSTEAD} if there is no camera.
Every source has its own memory. A source that fails is opened again after 0.5 s, 1 s, 2 s … 30 s; its memory is kept.

The browser page is at http://127.0.0.1:{PORT} or at the address of --web. On an address that others can reach, it
needs a token: that of --token-file, or a new one, which is printed once as a part of the page's address.

The command ends when all sources have ended, or with Ctrl-C: it writes the last snapshots, prints the summary, and has
exit code 0. Exit code 2: an error, reported in one line.

Keys in the window of --show: q quit, f forget, l learning on/off, n next source, space pause.
"""


class Address(NamedTuple):
    """The address of the page. given: whether the user chose it."""

    host: str
    port: int
    given: bool = True


def address(text: str) -> Address:
    """Parse [HOST:]PORT; an IPv6 address is in brackets."""
    found = re.fullmatch(r"(?:(\[[0-9a-fA-F:.]+\]|[^:\[\]]+):)?([0-9]{1,5})", text)
    if not found or int(found[2]) > 65535:
        raise argparse.ArgumentTypeError(f"expected [HOST:]PORT such as {PORT} or 0.0.0.0:{PORT}, got {text!r}")
    return Address((found[1] or "127.0.0.1").strip("[]"), int(found[2]))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `tttstream live`."""
    add = parser.add_argument
    add("sources", nargs="*", metavar="SOURCE", help="the sources to watch, see below (default: camera 0)")
    add("--allow", metavar="SOURCE", action="append", default=[], help="may be added on the page; may be repeated")
    known = f"a model by name or from its folder (default: base; map if all sources are {INSTEAD})"
    add("--model", metavar="DIR|NAME", type=arguments.model, help=known)
    add("--view", metavar="L", type=float, help="maps: the side of a view, in the units of the poses (default: 1)")
    add("--size", metavar="PX", type=whole, help="side of the model's square input (default: that of the model)")
    where = f"address of the browser page (default: 127.0.0.1:{PORT})"
    page = parser.add_mutually_exclusive_group()
    page.add_argument(
        "--web", metavar="[HOST:]PORT", type=address, default=Address("127.0.0.1", PORT, False), help=where
    )
    page.add_argument("--no-web", action="store_true", help="serve no page")
    add("--token-file", metavar="FILE", type=arguments.path, help="file with the token of the page")
    known = "another host name of the page, such as that of a proxy; may be repeated"
    add("--web-name", metavar="NAME", action="append", default=[], help=known)
    pem = "serve the page over TLS, with these PEM files (needed for the camera of a phone)"
    add("--web-tls", metavar=("CERT", "KEY"), nargs=2, type=arguments.path, help=pem)
    add("--show", action="store_true", help="show a source in a window too")
    arguments.add_recording(parser)
    policy = "latest drops late frames, all processes each, 'every N' each N-th (default: latest for cameras)"
    add("--policy", default="auto", help=policy)
    add("--loop", action="store_true", help="repeat recordings")
    add("--fast", action="store_true", help="read recordings as fast as possible, not at their own rate")
    expect = argparse.BooleanOptionalAction
    add("--expect", action=expect, help="also predict pictures; takes three times as long (default: for one source)")
    add("--no-learn", action="store_true", help="do not let the memories learn")
    add("--snapshots", metavar="DIR", type=arguments.path, help="folder for memories and positions in the sources")
    add("--every", metavar="S", type=float, default=10.0, help="seconds between two snapshots (default: 10)")
    add("--resume", action="store_true", help="continue from the snapshots in DIR")
    add("--events", metavar="DIR", type=arguments.path, help="write events to this folder, with pictures and clips")
    add("--webhook", metavar="URL", help="post each event to this address as JSON")
    add("--summary", metavar="FILE", type=arguments.path, help="write the summary to this file as JSON")
    add("--rerun", action="store_true", help="log to the Rerun viewer (pip install 'tttstream[rerun]')")
    add("--max-frames", metavar="N", type=whole, help="end each source after N frames")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps … (default: auto)")
    add("--backend", default="auto", choices=("auto", "definition", "torch", "triton"), help="of the memory")
    add("--seed", metavar="N", type=whole, default=0, help="of embedded sources and untrained weights (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Watch until all has ended; returns the exit code."""
    _check(args)
    from tttstream.io.interrupt import Interrupt
    from tttstream.io.outputs import OutputFolder

    sources = [str(spec) for spec in args.sources] or [default_source()]
    with ExitStack() as stack:
        if args.summary is not None:
            stack.enter_context(OutputFolder(args.summary.absolute().parent, claim=False))
        engine = make_engine(args, sources)
        views = _views(args, engine, stack)
        interrupt = stack.enter_context(Interrupt())
        stack.enter_context(engine)
        for number in range(len(sources)):
            engine.add(number)
        _serve(args, engine, stack)
        try:
            follow(engine, views, interrupt)
        except KeyboardInterrupt:
            print("tttstream: stopping at once", file=sys.stderr)
        summary = engine.stop()
    return report(summary, args)


def _check(args: argparse.Namespace) -> None:
    """Check the options before anything is loaded. Raises ConfigError."""
    arguments.check_numbers(args)
    if not 0.1 <= args.every <= 86_400:
        raise ConfigError(f"--every is {args.every}: expected 0.1 to 86400 seconds")
    if args.resume and args.snapshots is None:
        raise ConfigError("--resume needs --snapshots DIR, the folder of the run to continue with")
    if args.no_web and args.token_file is not None:
        raise ConfigError("--token-file is for the page: leave out --no-web or --token-file")


def make_engine(args: argparse.Namespace, sources: list[str]) -> Engine:
    """The model and the engine for these options."""
    import torch

    from tttstream import models
    from tttstream.io.addresses import checked
    from tttstream.live import Engine
    from tttstream.sources import Source, open_source

    torch.set_num_threads(1)  # frames are small: a second thread mostly waits, and decoding needs the core
    torch.manual_seed(args.seed)
    allowed = [*sources, *args.allow]
    name = args.model or ("map" if set(allowed) == {"places"} else "base")

    for spec in allowed:
        if "://" in spec:
            checked(spec)
    shares = options_of(args, allowed)

    def opener(spec: str) -> Source:
        return open_source(spec, seed=args.seed, **shares[spec])

    return Engine(
        models.load(name, seed=args.seed, size=args.size),
        allowed=allowed,
        name=Path(name).name,
        policy=args.policy,
        paced=not args.fast,
        looped=args.loop,
        snapshots=args.snapshots,
        every_s=args.every,
        resume=args.resume,
        events=args.events,
        webhook=args.webhook,
        expect=args.expect,
        view=args.view,
        learn=not args.no_learn,
        device=args.device,
        backend=args.backend,
        limit=args.max_frames,
        opener=opener,
    )


def _serve(args: argparse.Namespace, engine: Engine, stack: ExitStack) -> None:
    """Serve the page, and print its address."""
    if args.no_web:
        return
    try:
        from tttstream.live.web import serve
        from tttstream.live.web.access import SHORTEST, is_loopback
    except ImportError as error:
        raise DependencyError("the page needs Starlette, uvicorn and websockets: install them, or --no-web") from error

    token = None
    if args.token_file is not None:
        token = args.token_file.read_text(encoding="utf-8").strip() if args.token_file.is_file() else ""
        if len(token) < SHORTEST:
            raise ConfigError(f"--token-file {args.token_file}: expected a file with {SHORTEST} characters or more")
    elif not is_loopback(args.web.host):
        token = "new"
    more: dict[str, Any] = {"token": token, "names": args.web_name}
    more["tls"] = None if args.web_tls is None else tuple(args.web_tls)
    try:
        server = serve(engine, args.web.host, args.web.port, **more)
    except OutputError:
        if args.web.given:
            raise
        server = serve(engine, args.web.host, 0, **more)  # another run uses the default port
    stack.callback(server.close)
    print(f"page: {server.url}", flush=True)


def _views(args: argparse.Namespace, engine: Engine, stack: ExitStack) -> list[Any]:
    """Displays in addition to the page: `show() -> bool` of each returns whether to continue."""
    views: list[Any] = []
    if args.rerun:
        from tttstream.live.rerun import RerunLog

        views.append(RerunLog(engine))
    if args.show:
        from tttstream.live.window import LiveWindow

        views.append(LiveWindow(engine))
        stack.callback(views[-1].close)
    return views


def follow(engine: Engine, views: list[Any], interrupt: Any) -> None:
    """Show results until all sources have ended or the user stops: print changes at once, and a line every ten
    seconds."""
    due, news = time.monotonic() + 10.0, News()
    while engine.running and not interrupt.asked:
        for view in views:
            if not view.show():
                return
        for camera in engine.cameras:
            news.hear(camera)
        if time.monotonic() >= due:
            due = time.monotonic() + 10.0
            for status in engine.status()["cameras"]:
                print(line_of(status), file=sys.stderr, flush=True)
        if not views:
            time.sleep(0.05)
    for camera in engine.cameras:  # a source may have failed since the last look
        news.hear(camera)


class News:
    """Reports on standard error that a source fails, ends early, sends nothing, or works again."""

    BAD = ("failed", "retrying", "stalled")

    def __init__(self) -> None:
        self._said: dict[str, tuple[str, str]] = {}

    def hear(self, camera: Camera) -> None:
        """Print a line if the state of this camera has changed."""
        state, reason, before = camera.state, camera.reason, self._said.get(camera.id)
        if state in self.BAD and before != (state, reason):
            self._said[camera.id] = state, reason
            text = {"failed": "failed", "retrying": "trying again", "stalled": "no new frames"}[state]
            told = reason if reason.startswith(camera.label) else f"{camera.label}: {reason}"
            print(f"tttstream: {told if reason else camera.label} ({text})", file=sys.stderr, flush=True)
        elif state == "running" and before is not None:
            del self._said[camera.id]
            print(f"tttstream: {camera.label}: frames arrive again", file=sys.stderr, flush=True)


def line_of(status: dict[str, Any]) -> str:
    """The status of a camera in one line."""
    latency = status["latency_ms"]["p50"]
    parts = [
        f"{status['label']}: {status['state']}" + (f" ({status['reason']})" if status["reason"] else ""),
        f"{status['frames']} frames",
        f"{status['fps']:.1f} fps",
        "" if latency is None else f"{latency:.0f} ms",
        f"{status['dropped']} dropped" if status["dropped"] else "",
        f"{status['refused']} refused ({status['refusal']})" if status["refused"] else "",
        f"{status['events']} events",
    ]
    return ", ".join(part for part in parts if part)


def report(summary: dict[str, Any], args: argparse.Namespace) -> int:
    """Print the summary. Raises SourceError if no source gave a frame."""
    from tttstream.io.names import shown
    from tttstream.io.outputs import write_report

    cameras = summary["cameras"]
    failed = [camera for camera in cameras if camera["state"] == "failed"]
    if failed and not any(camera["results"] for camera in cameras):
        raise SourceError(failed[0]["reason"])
    for camera in cameras:
        if not camera["results"] and camera["reason"]:
            print(f"tttstream: {camera['label']} gave no frame: {camera['reason']}", file=sys.stderr)
        latency = camera["latency_ms"]
        counts = ", ".join(f"{camera[what]} {what}" for what in ("dropped", "skipped", "refused") if camera[what])
        times = "".join(f", {name} {latency[name]:.1f} ms" for name in latency)
        print(
            shown(
                f"{camera['label']}: {camera['results']} frames{', ' if counts else ''}{counts}{times}, "
                f"{camera['events']} events, state {camera['state_bytes'] / 1e3:.0f} kB"
            )
        )
    for what, trouble in summary["trouble"].items():
        if trouble is not None:
            print(f"tttstream: {what}: {trouble}", file=sys.stderr)
    if args.summary is not None:
        write_report(args.summary, summary)
    return 0
