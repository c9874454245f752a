"""Scores of novelty on spliced streams: the events that surprise, a frozen memory and two baselines find."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tttstream.evaluation.detection import Baselines, Scores, auroc, windows
from tttstream.streams.normaliser import Normaliser

DETECTORS = ("surprise", "frozen", "frame_difference", "mog2")
WINDOW = 20  # frames after an event in which it counts as found
WARMUP = 30  # frames of a stream before which nothing is counted
THRESHOLD, RELEASE = 3.0, 1.5  # deviations, as in `tttstream watch`
FPS = 25.0  # frames per second for counts per minute


@dataclass
class Spliced:
    """One stream: the raw scores of each detector, frame by frame, and where events begin, by kind."""

    baselines: Baselines = field(default_factory=Baselines)
    scores: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in DETECTORS})
    events: list[tuple[int, str]] = field(default_factory=list)

    def add(self, image: NDArray[np.uint8], surprise: float, frozen: float, event: str | None, **others: float) -> None:
        """Add a frame [H, W, 3], its losses, and the kind of event that begins with it, if any. others: the scores of
        further detectors, by name."""
        if event is not None:
            self.events.append((len(self.scores["surprise"]), event))
        for name, value in zip(DETECTORS, (surprise, frozen, *self.baselines.scores(image)), strict=True):
            self.scores[name].append(value)
        for name, value in others.items():
            self.scores.setdefault(name, []).append(value)

    def counted(self) -> list[tuple[int, str]]:
        """The events after the warm-up whose window is inside the stream."""
        last = len(self.scores["surprise"]) - WINDOW
        return [(at, kind) for at, kind in self.events if WARMUP <= at <= last]

    def free(self) -> NDArray[np.bool_]:
        """The frames without an event near them: not in the warm-up and not within two windows after an event."""
        free = np.ones(len(self.scores["surprise"]), dtype=bool)
        free[:WARMUP] = False
        for at, _ in self.events:
            free[at : at + 2 * WINDOW] = False
        return free


def normalised(scores: Sequence[float]) -> Scores:
    """Standard scores relative to the recent past of the stream, as in `Stream`."""
    normaliser = Normaliser()
    return np.array([normaliser.push(score + 1e-3) for score in scores])


def alarms(scores: Scores, threshold: float = THRESHOLD) -> list[int]:
    """The frames at which scores rise above a threshold. An alarm lasts until the score falls below the release, half
    of the threshold."""
    found, up = [], False
    for at, score in enumerate(scores.tolist()):
        if not up and score > threshold:
            found.append(at)
        up = score > (threshold * RELEASE / THRESHOLD if up else threshold)
    return found


def judge(streams: Sequence[Spliced]) -> dict[str, dict[str, dict[str, Any]]]:
    """Detector and kind of event ("all" too) -> events, auroc, found, delay_frames, false_alarms_per_minute.

    auroc: of the highest normalised score within WINDOW frames from an event on, against that of WINDOW frames without
    an event near them. found: share of the events with an alarm in their window; delay_frames: median frames to it.
    false_alarms_per_minute: alarms in frames without an event of any kind near them.
    """
    kinds = sorted({kind for stream in streams for _, kind in stream.counted()})
    report: dict[str, dict[str, dict[str, Any]]] = {}
    for name in streams[0].scores if streams else DETECTORS:
        rows = [normalised(stream.scores[name]) for stream in streams]
        raised = [alarms(row) for row in rows]
        quiet = [stream.free() for stream in streams]
        pieces = zip(rows, quiet, strict=True)
        chance = np.array([piece.max() for row, free in pieces for piece in windows(row, free, WINDOW)])
        minutes = sum(int(free.sum()) for free in quiet) / FPS / 60
        false = sum(int(free[at]) for found, free in zip(raised, quiet, strict=True) for at in found)
        report[name] = {}
        for kind in ("all", *kinds):
            tops, delays = [], []
            for stream, row, found in zip(streams, rows, raised, strict=True):
                for at, of in stream.counted():
                    if kind in ("all", of):
                        tops.append(row[at : at + WINDOW].max())
                        delays += [alarm - at for alarm in found if at <= alarm < at + WINDOW][:1]
            report[name][kind] = {
                "events": len(tops),
                "auroc": auroc(np.array(tops), chance),
                "found": len(delays) / len(tops) if tops else float("nan"),
                "delay_frames": float(np.median(delays)) if delays else float("nan"),
                "false_alarms_per_minute": false / minutes if minutes else float("nan"),
            }
    return report


def at_rates(streams: Sequence[Spliced], rates: Sequence[float], kind: str = "all") -> dict[str, list[float]]:
    """Detector -> for each of the rates, the largest share of events of this kind ("all": of any) that any threshold
    finds with at most so many false alarms a minute. Found and false: see `judge`."""
    quiet = [stream.free() for stream in streams]
    minutes = sum(int(free.sum()) for free in quiet) / FPS / 60
    asked = [[at for at, of in stream.counted() if kind in ("all", of)] for stream in streams]
    least, report = 0.0 if any(asked) else float("nan"), {}
    for name in streams[0].scores if streams else DETECTORS:
        rows, best = [normalised(stream.scores[name]) for stream in streams], [least] * len(rates)
        for threshold in np.geomspace(0.5, 60, 120):
            hits, false = [], 0
            for events, row, free in zip(asked, rows, quiet, strict=True):
                found = alarms(row, threshold)
                false += sum(int(free[at]) for at in found)
                hits += [any(at <= alarm < at + WINDOW for alarm in found) for at in events]
            share = float(np.mean(hits)) if hits else float("nan")
            best = [max(old, share) if false <= rate * minutes else old for old, rate in zip(best, rates, strict=True)]
        report[name] = best
    return report


def table(report: dict[str, dict[str, dict[str, Any]]]) -> str:
    """A report as a table in Markdown."""
    lines = ["| detector | event | events | AUROC | found | delay, frames | false alarms/min |"]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for name, kinds in report.items():
        for kind, row in kinds.items():
            lines.append(
                f"| {name.replace('_', ' ')} | {kind} | {row['events']} | {row['auroc']:.3f} | {row['found']:.2f} | "
                f"{row['delay_frames']:.1f} | {row['false_alarms_per_minute']:.2f} |"
            )
    return "\n".join(lines) + "\n"
