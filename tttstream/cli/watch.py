"""`tttstream watch`: learns online from a video, a camera or a generated stream, and writes the surprise."""

from __future__ import annotations

import argparse
import re
import sys
import unicodedata
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tttstream.cli import arguments
from tttstream.errors import ConfigError, SourceError
from tttstream.io.addresses import public
from tttstream.io.names import clipped, shortened, shown

if TYPE_CHECKING:
    from tttstream.cli.recorder import Recorder
    from tttstream.frames import Frame
    from tttstream.io.interrupt import Interrupt
    from tttstream.streams.session import Session
    from tttstream.views.overlay import Picture
    from tttstream.views.window import Viewer

OUT = "watch-results"
LONGEST = 200  # largest number of bytes of a source's name in the name of its folder
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # reserved names on Windows
EPILOG = f"""\
SOURCE is a video file or URL, a folder of images or of videos, frame%05d.png for numbered images, - for a video on the
standard input (MPEG-TS, Matroska, or MP4 with its index in front), a camera number, gym:ENV_ID, walk (an endless
generated camera walk) or places (an endless generated camera that returns to places, with poses). Links to
folders are followed, to each folder once. Cameras, environments, walk and places run until --max-frames or Ctrl-C.
Ctrl-C ends the run normally: all results are written, the summary has "interrupted": true, and the exit code is 0.

The results of one source are written to DIR itself: frames.jsonl, summary.json, overlay.mp4, surprise.png. Several
sources are read one after another; each has its own folder in DIR, named after the source, and DIR has one summary.json
for all. Each source starts with the same memory, fresh or from --load-state, so its results do not depend on the other
sources. With --carry the memory continues from one source to the next (a recording in several files). --save-state
saves the memory of the last source. Results of an earlier run in DIR are replaced. DIR belongs to one run at a time: a
second run names the owner and ends (also on network drives that support locks). A source that cannot be read is skipped
with a line on standard error (with --on-error raise it ends the run).

If --model is the folder of a classifier, which `fit` and `export` write, the likeliest classes are drawn over the
picture and written to frames.jsonl (for the frame, and for all frames so far) and summary.json (for all frames).

`tttstream track VIDEO --first-mask FILE` follows the objects of a mask.

--show without --out writes nothing. Keys in the window: q quit, f forget, l learning on/off, space pause.
Exit codes: 0 success; 2 an error, reported in one line. A source that fails leaves no files.
The default for --out is {OUT}.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `tttstream watch`."""
    add = parser.add_argument
    add("sources", nargs="+", metavar="SOURCE", help="what to watch (see below)")
    known = "a model by name or from its folder (default: base)"
    add("--model", metavar="DIR|NAME", type=arguments.model, default="base", help=known)
    arguments.add_run(parser, size="side of the model's square input")
    add("--view", metavar="L", type=float, help="maps: the side of a view, in the units of the poses (default: 1)")
    add("--embeddings", action="store_true", help="also write embeddings.npy, one vector for each frame (slower)")
    add("--carry", action="store_true", help="keep the memory from one source to the next")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps … (default: auto)")
    backends = ("auto", "definition", "torch", "triton")
    add("--backend", default="auto", choices=backends, help="of the memory (default: auto)")


def folder_names(specs: list[str]) -> list[str]:
    """One folder name for each source: its stem, with a number if several are equal."""
    names: list[str] = []
    taken = {"summary.json"}
    for spec in specs:
        last = re.split(r"[/\\]", spec.removeprefix("gym:").rstrip("/\\").partition("?")[0])[-1]
        stem = clipped(re.sub(r"[^\w.-]+", "_", Path(last).stem), LONGEST).strip(".") or "source"
        stem = {"-": "stdin"}.get(stem, stem)
        name, count = f"camera-{stem}" if stem.isdigit() and spec == stem else stem, 2
        while _folded(name) in taken or RESERVED.fullmatch(name):
            name, count = f"{stem}-{count}", count + 1
        taken.add(_folded(name))
        names.append(name)
    return names


def _folded(name: str) -> str:
    """Equal for names that some file systems identify: with other case, or with composed or decomposed accents."""
    return unicodedata.normalize("NFC", name).casefold()


def run(args: argparse.Namespace) -> int:
    """Watch all sources. Returns the exit code."""
    arguments.check_run(args)
    from tttstream.cli.loop import claimed
    from tttstream.io.interrupt import Interrupt
    from tttstream.io.outputs import OutputFolder
    from tttstream.sources.listing import expand

    specs = expand(args.sources, strict=False)
    out = arguments.out_folder(args, OUT)
    if args.poses is not None and len(specs) > 1:
        raise ConfigError(f"--poses belongs to one source, got {len(specs)}: run them one by one")
    model = loaded(args)
    summaries: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        window = claimed(args, stack)
        if len(specs) > 1 and out is not None:
            stack.enter_context(OutputFolder(out))
        with Interrupt() as interrupt:
            stream = make_stream(model, args)
            for spec, name in zip(specs, folder_names(specs), strict=True):
                folder = out / name if out is not None and len(specs) > 1 else out
                try:
                    summaries.append(watch(spec, folder, stream, window, interrupt, args, single=len(specs) == 1))
                except SourceError as error:
                    if len(specs) == 1 or args.on_error == "raise":
                        raise
                    failed[public(spec)] = shown(" ".join(str(error).split()))
                    print(f"tttstream: skipped: {failed[public(spec)]}", file=sys.stderr)
                if interrupt.asked:
                    break
            if not summaries:
                raise SourceError(f"none of the {len(specs)} sources could be read")
            if len(specs) > 1 and out is not None:
                write_index(out, summaries, failed)
    return 0


def loaded(args: argparse.Namespace) -> Any:
    """Load the model of the options, with the size of the stream of --load-state."""
    import torch

    from tttstream import models
    from tttstream.streams import Saved

    torch.set_num_threads(1)  # frames are small: a second thread mostly waits, and decoding needs the core
    torch.manual_seed(args.seed)
    size = Saved(args.load_state).size if args.size is None and args.load_state is not None else args.size
    return models.load(args.model, seed=args.seed, size=size)


def make_stream(model: Any, args: argparse.Namespace) -> Session:
    """The stream around a model, as the options say."""
    from tttstream.models.masks import Propagator
    from tttstream.streams import kind_for

    if isinstance(model, Propagator):
        raise ConfigError(f"{args.model} is a model of masks: use `tttstream track`")
    kind: Any = kind_for(model)
    if args.embeddings and not kind.EMBEDS:
        raise ConfigError(f"--embeddings: a {type(model).__name__} has none, leave it out")
    if args.view is not None and not kind.VIEWS:
        raise ConfigError(f"--view needs a map, and {args.model} is none: leave it out")
    if args.view is not None and args.load_state is not None:
        raise ConfigError("the file of --load-state sets --view: leave it out")
    more: dict[str, Any] = {"embed": args.embeddings} if kind.EMBEDS else {}
    more |= {} if args.view is None else {"view": args.view}
    return cast("Session", kind(model, device=args.device, backend=args.backend, learn=not args.no_learn, **more))


def watch(
    spec: str,
    folder: Path | None,
    stream: Any,
    window: Viewer | None,
    interrupt: Interrupt,
    args: argparse.Namespace,
    *,
    single: bool,
) -> dict[str, Any]:
    """Watch one source with a stream of surprise. Returns its summary."""
    from tttstream.cli.loop import Run, opened
    from tttstream.cli.recorder import Recorder
    from tttstream.streams import MapStream, Saved
    from tttstream.views.world import WorldOverlay

    with opened(spec, args) as source:
        if args.load_state is not None and not (args.carry and stream.frames):
            resumed = single and Saved(args.load_state).source == source.name
            stream.load(args.load_state, source if resumed else None)
            stream.learn = not args.no_learn
        elif not args.carry:
            stream.reset()
        stream.begin(source)
        recorder = Recorder(
            folder,
            source,
            video=not args.no_overlay,
            pictures=window is not None,
            embeddings=args.embeddings,
            overlay=WorldOverlay(stream) if isinstance(stream, MapStream) else None,
            surprises=stream.surprises,
        )

        def step(frame: Frame) -> tuple[Picture | None, float]:
            result = stream.push(frame)
            note = "" if stream.learn else "not learning"
            return recorder.add(frame, result, stream.state_bytes, note), result.surprise

        title = f"{shortened(source.name, 48)} · {shortened(args.model, 24)} model, {stream.size} px"
        more = {"seed": args.seed}
        summary = Run(spec, source, stream, step, recorder, window, interrupt, args).recorded(more, title)
    report(spec, folder, summary, recorder)
    return summary


def write_index(out: Path, summaries: list[dict[str, Any]], failed: dict[str, str]) -> None:
    """Write summary.json for several sources: the sums, the summary of each source, and the unreadable sources."""
    from tttstream.io.outputs import write_report

    short = [{k: v for k, v in summary.items() if k not in ("events", "planted")} for summary in summaries]
    total = {
        "frames": sum(summary["frames"] for summary in summaries),
        "skipped": sum(summary["skipped"] for summary in summaries),
        "seconds": round(sum(summary["seconds"] for summary in summaries), 3),
        "sources": short,
        "unreadable": [{"source": spec, "reason": reason} for spec, reason in failed.items()],
    }
    write_report(out / "summary.json", total)
    print(shown(f"summary of {len(summaries)} sources: {out / 'summary.json'}"))


def report(spec: str, folder: Path | None, summary: dict[str, Any], recorder: Recorder) -> None:
    """Print the last lines on standard output."""
    latency = summary["latency_ms"]
    extra = "".join(
        f", {text}"
        for text, said in (
            (f"{summary['skipped']} skipped", summary["skipped"]),
            ("truncated", summary["truncated"]),
            ("interrupted", summary["interrupted"]),
        )
        if said
    )
    print(
        f"{shown(public(spec))}: {summary['frames']} frames{extra}, {summary['fps']:.0f} fps, "
        f"latency {latency['p50']:.1f} ms (p95 {latency['p95']:.1f}), {summary['events_total']} events, "
        f"state {summary['state_bytes'] / 1e3:.0f} kB"
    )
    if "labels" in summary:
        said = ", ".join(f"{item['label']} {100 * item['probability']:.0f}%" for item in summary["labels"][:3])
        print(f"  over all frames: {said}")
    for name, found in summary.get("detection", {}).items():
        if found["auroc"] is not None:
            delay = "-" if found["delay_frames"] is None else f"{found['delay_frames']:g}"
            print(
                f"  {name:<17} AUROC {found['auroc']:.3f}, found {100 * found['found']:.0f}% of {found['events']} "
                f"planted events, median delay {delay} frames"
            )
    if folder is not None:
        print(shown(f"results: {folder} ({', '.join(recorder.written)})"))
