"""`tttstream watch`: learn online from a video, a camera or the embedded walk, and write down what surprises."""

from __future__ import annotations

import argparse
import os
import re
import sys
import unicodedata
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tttstream.cli import arguments
from tttstream.cli.numbers import whole
from tttstream.errors import OutputError, ShapeError, SourceError
from tttstream.io.names import clipped, shortened, shown

if TYPE_CHECKING:
    from tttstream.cli.recorder import Recorder
    from tttstream.frames import Frame
    from tttstream.io.interrupt import Interrupt
    from tttstream.streams import Session, Stream
    from tttstream.streams.map import MapStream
    from tttstream.views.overlay import Overlay, Picture
    from tttstream.views.window import Window

OUT = "watch-results"
LONGEST = 200  # bytes of a source's name that its folder is called by
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # names that Windows keeps for devices
LARGEST = 4096  # of the sides in pixels that are taken: beyond, one frame fills the memory of most machines
EPILOG = f"""\
SOURCE is a video file or URL, a folder of images or of videos, frame%05d.png for images with numbers, - for a video on
the standard input (MPEG-TS, Matroska, or MP4 with its index in front), a camera number, gym:ENV_ID, walk (an endless
camera walk that needs no file) or places (an endless camera that returns to what it saw, with its pose). Links to
folders are followed, to each folder once. Cameras, environments, walk and places go on until --max-frames or Ctrl-C;
Ctrl-C ends the run in good order: everything is written, the summary says "interrupted": true, and the exit code is 0.

One source is written to DIR itself: frames.jsonl, summary.json, overlay.mp4, surprise.png. Several sources are taken
one after another, each written to a folder of its own in DIR, named after the source, with one summary.json over all.
Each source starts with the same memory, a fresh one or that of --load-state, so its results do not depend on its
neighbours; with --carry the memory goes on from one source to the next (a recording in several files). --save-state
keeps the memory of the last source. What an earlier run left in DIR under these names goes: DIR tells of one run, and
belongs to one run at a time. A second one says who has it, and ends (on network drives too, where they pass locks on).
A source that cannot be read is passed over with a line on standard error (with --on-error raise it ends the run).

With the folder of a classifier as --model, which `fit` and `export` write, the likeliest classes stand in the picture,
in frames.jsonl (of the frame, and of all frames so far) and in summary.json (of all frames).

With --model mask --first-mask FILE the objects in the mask are followed through one source: DIR holds masks (images
with the numbers of that mask), overlay.mp4, frames.jsonl and summary.json. FILE is as large as the first frame, PNG or
another image without loss. Grey and palette images number the objects, 0 is the background, and 255 in 8 bits is void
(unknown) unless 0 and 255 are all there is: then it is the object. In RGB each colour is an object, black the
background. What is transparent is background. JPEG and smoothed edges are refused. All of it: docs/masks.md.

--show without --out writes nothing. Keys in the window: q quit, f forget, l learning on/off, space pause.
Exit codes: 0 done, 2 something in the way, said in one line; a source in the way leaves none of its files behind.
The default for --out is {OUT}.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `tttstream watch`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    add = parser.add_argument
    add("sources", nargs="+", metavar="SOURCE", help="what to watch, see below")
    known = "a model by name or from its folder (default: base)"
    add("--model", metavar="DIR|NAME", type=arguments.model, default="base", help=known)
    add("--out", metavar="DIR", type=arguments.path, help="where the results are written")
    add("--max-frames", metavar="N", type=whole, help="end each source after N frames")
    add("--first-mask", metavar="FILE", type=arguments.path, help="an image of the objects to follow (models of masks)")
    add(
        "--size",
        metavar="PX",
        type=whole,
        help="side of the square that the model sees (masks: short side); default: what it was trained at, or that of "
        "--load-state",
    )
    add("--on-error", choices=("skip", "raise"), default="skip", help="what a damaged frame or source does to the run")
    add(
        "--poses",
        metavar="FILE",
        help="where each frame was taken: csv, TUM or KITTI rows; of a camera, a growing file",
    )
    add("--pose", metavar="KEYS", help="the columns of that file, or values of an environment: x,y,yaw:deg, minigrid …")
    add(
        "--pose-start", metavar="N", type=float, help="what the clock of that file says at the first frame (default: 0)"
    )
    add("--pose-tolerance", metavar="S", type=float, help="how far in seconds a frame may be from a row, or a row late")
    add("--view", metavar="L", type=float, help="maps: the side of a view, in the units of the poses (default: 1)")
    add("--policy", metavar="MODULE:NAME", help="plays gym:ENV: a callable (observation, info, env) -> action")
    add("--embeddings", action="store_true", help="write embeddings.npy too, one vector a frame (slower)")
    add("--no-learn", action="store_true", help="do not let the memory learn")
    add("--save-state", metavar="FILE", type=arguments.path, help="save memory and place in the source at the end")
    known = "go on with a saved memory; in the same source, where it stood"
    add("--load-state", metavar="FILE", type=arguments.path, help=known)
    add("--carry", action="store_true", help="carry the memory on from one source to the next")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps … (default: auto)")
    add(
        "--backend",
        default="auto",
        choices=("auto", "definition", "torch", "triton", "reference"),
        help="of the memory (default: auto)",
    )
    add("--no-overlay", action="store_true", help="do not write overlay.mp4")
    add("--show", action="store_true", help="show the overlay in a window while it runs")
    add("--seed", metavar="N", type=whole, default=0, help="of walk, random actions and untrained weights (default: 0)")


def check(args: argparse.Namespace) -> None:
    """Refuse numbers that make no sense before anything is loaded."""
    if args.size is not None and not 1 <= args.size <= LARGEST:
        raise ShapeError(f"--size is {args.size}: expected a side of 1 to {LARGEST} pixels, such as 128")
    if args.max_frames is not None and args.max_frames < 1:
        raise ShapeError(f"--max-frames is {args.max_frames}: expected 1 or more")
    if not 0 <= args.seed < 2**63:
        raise ShapeError(f"--seed is {args.seed}: expected 0 or more, below 2 to the power of 63")
    if args.load_state is not None and not os.path.isfile(args.load_state):
        raise SourceError(f"--load-state: there is no file {args.load_state}")
    if args.save_state is not None and os.path.isdir(args.save_state):
        raise OutputError(f"--save-state {args.save_state} is a folder: give a file")
    if args.out is not None and os.path.exists(args.out) and not os.path.isdir(args.out):
        raise OutputError(f"--out {args.out} is a file: give a folder")


def folder_names(specs: list[str]) -> list[str]:
    """One folder name for each source: its stem, with a number where two are alike."""
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
    """Alike for names that some file systems take for one: of other case, or of accents put on or built in."""
    return unicodedata.normalize("NFC", name).casefold()


def run(args: argparse.Namespace) -> int:
    """Watch all sources; returns the exit code."""
    check(args)
    from tttstream.io.claims import Claim
    from tttstream.io.interrupt import Interrupt
    from tttstream.io.outputs import OutputFolder, saving
    from tttstream.models.masks.folder import is_masks
    from tttstream.sources.listing import expand

    specs = expand(args.sources, strict=False)
    out = args.out if args.out is not None or args.show else Path(OUT)
    if args.poses is not None and len(specs) > 1:
        raise ShapeError(f"--poses belongs to one source, {len(specs)} came: run them one by one")
    window, masks = None, is_masks(args.model)
    if masks:
        from tttstream.cli import follow_masks

        follow_masks.check(args, specs)
    elif args.first_mask is not None:
        raise ShapeError(f"--first-mask is for a model of masks, {args.model} is none: add --model mask")
    if args.show:
        from tttstream.views.window import Window

        window = Window()
    summaries: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        if window is not None:
            stack.callback(window.close)
        if args.save_state is not None:
            stack.enter_context(OutputFolder(args.save_state.absolute().parent, claim=False))
            with saving(args.save_state):
                stack.enter_context(Claim.on_file(args.save_state))
        if masks:
            return follow_masks.run(args, specs[0], out, window)
        if len(specs) > 1 and out is not None:
            stack.enter_context(OutputFolder(out))
        with Interrupt() as interrupt:
            stream = make_stream(args)
            for spec, name in zip(specs, folder_names(specs), strict=True):
                folder = out / name if out is not None and len(specs) > 1 else out
                try:
                    summaries.append(watch(spec, folder, stream, window, interrupt, args, single=len(specs) == 1))
                except SourceError as error:
                    if len(specs) == 1 or args.on_error == "raise":
                        raise
                    failed[spec] = shown(" ".join(str(error).split()))
                    print(f"tttstream: passed over: {failed[spec]}", file=sys.stderr)
                if interrupt.asked:
                    break
            if not summaries:
                raise SourceError(f"none of the {len(specs)} sources could be read")
            if len(specs) > 1 and out is not None:
                write_index(out, summaries, failed)
    return 0


def make_stream(args: argparse.Namespace) -> Stream | MapStream:
    """The model and the stream around it, as the options say."""
    import torch

    from tttstream import models
    from tttstream.models.map import MapModel
    from tttstream.streams import Stream
    from tttstream.streams.map import MapStream

    torch.set_num_threads(1)  # frames are small: a second thread waits more than it works, and decoding wants the core
    torch.manual_seed(args.seed)
    size = saved_size(args.load_state) if args.size is None and args.load_state is not None else args.size
    model = models.load(args.model, seed=args.seed, size=size)
    if isinstance(model, MapModel):
        if args.embeddings:
            raise ShapeError("--embeddings is for models of frames, not for maps: leave it out")
        if args.view is not None and args.load_state is not None:
            raise ShapeError("--view is told by the state of --load-state: leave it out")
        view = 1.0 if args.view is None else args.view
        return MapStream(model, view=view, device=args.device, backend=args.backend, learn=not args.no_learn)
    if args.view is not None:
        raise ShapeError(f"--view is for maps, and {args.model} is none: leave it out")
    return Stream(model, device=args.device, backend=args.backend, learn=not args.no_learn, embed=args.embeddings)


def make_overlay(stream: Session) -> Overlay | None:
    """What draws a stream, None for the usual picture."""
    from tttstream.streams.map import MapStream

    if not isinstance(stream, MapStream):
        return None
    from tttstream.views.world import WorldOverlay

    return WorldOverlay(stream)


def watch(
    spec: str,
    folder: Path | None,
    stream: Stream | MapStream,
    window: Window | None,
    interrupt: Interrupt,
    args: argparse.Namespace,
    *,
    single: bool,
) -> dict[str, Any]:
    """Watch one source from its start to its end; returns its summary."""
    from tttstream.cli.loop import follow, opened
    from tttstream.cli.recorder import Recorder
    from tttstream.models.map.points import Plane
    from tttstream.streams.map import MapStream

    with opened(spec, args) as source:
        if args.load_state is not None and not (args.carry and stream.frames):
            resumed = single and saved_source(args.load_state) == source.name
            stream.load(args.load_state, source if resumed else None)
            stream.learn = not args.no_learn
        elif not args.carry:
            stream.reset()
        if isinstance(stream, MapStream):
            stream.plane = Plane(source.pose_form)
        endless = source.frames is None and args.max_frames is None
        recorder = Recorder(
            folder,
            source,
            video=not args.no_overlay,
            pictures=window is not None,
            embeddings=args.embeddings,
            endless=endless,
            overlay=make_overlay(stream),
            surprises=stream.surprises,
        )

        def step(frame: Frame) -> tuple[Picture | None, float]:
            result = stream.push(frame)
            note = "" if stream.learn else "not learning"
            return recorder.add(frame, result, stream.state_bytes, note), result.surprise

        try:
            interrupted = follow(source, stream, step, recorder, window, interrupt, args)
            if not recorder.frames and interrupted:
                raise KeyboardInterrupt
            if not recorder.frames:
                raise SourceError(f"{spec}: no readable frame" + (" after the saved place" if args.load_state else ""))
            summary = {
                "source": spec,
                "model": args.model,
                "size": stream.size,
                "seed": args.seed,
                "learn": not args.no_learn,
                "interrupted": interrupted,
                "state_bytes": stream.state_bytes,
                **recorder.summary(),
            }
            model = shortened(args.model, 24)
            recorder.finish(summary, f"{shortened(source.name, 48)} · {model} model, {stream.size} px")
            if args.save_state is not None:
                stream.save(args.save_state, source)
            recorder.publish()
        except BaseException:
            recorder.discard()
            raise
    report(spec, folder, summary, recorder)
    return summary


def saved_source(path: Path) -> str | None:
    """The name of the source that a saved stream was watching."""
    import json

    from tttstream.state import metadata

    place = json.loads(metadata(path).get("stream", "{}")).get("source")
    return None if place is None else str(place["name"])


def saved_size(path: Path) -> int | None:
    """The size at which a saved stream saw its frames; None where it does not say."""
    import json

    from tttstream.state import metadata

    return json.loads(metadata(path).get("stream", "{}")).get("size")


def write_index(out: Path, summaries: list[dict[str, Any]], failed: dict[str, str]) -> None:
    """summary.json over several sources: the sums, each source's own summary, and what could not be read."""
    from tttstream.io.outputs import TextFile, text_of

    short = [{k: v for k, v in summary.items() if k not in ("events", "planted")} for summary in summaries]
    total = {
        "frames": sum(summary["frames"] for summary in summaries),
        "skipped": sum(summary["skipped"] for summary in summaries),
        "seconds": round(sum(summary["seconds"] for summary in summaries), 3),
        "sources": short,
        "unreadable": [{"source": spec, "reason": reason} for spec, reason in failed.items()],
    }
    file = TextFile(out / "summary.json")
    with file:
        file.write(text_of(total, indent=2) + "\n")
    print(shown(f"summary of {len(summaries)} sources: {out / 'summary.json'}"))


def report(spec: str, folder: Path | None, summary: dict[str, Any], recorder: Recorder) -> None:
    """The last lines on standard output."""
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
        f"{shown(spec)}: {summary['frames']} frames{extra}, {summary['fps']:.0f} fps, latency {latency['p50']:.1f} ms "
        f"(p95 {latency['p95']:.1f}), {summary['events_total']} events, state {summary['state_bytes'] / 1e3:.0f} kB"
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
