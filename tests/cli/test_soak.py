"""100,000 frames through `tttstream watch`: latency and memory are those after the first thousand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import psutil
import pytest

from tttstream.cli.main import main
from tttstream.cli.recorder import Recorder

FRAMES = 100_000


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_nothing_grows_in_100_000_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything on: overlay, embeddings, the comparison with two rivals. At 32 pixels, to be done within the hour."""
    add, resident = Recorder.add, [0]

    def watched(self: Recorder, *args: object) -> object:
        resident[0] = max(resident[0], psutil.Process().memory_info().rss) if self.frames > 1000 else 0
        return add(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Recorder, "add", watched)
    words = ["watch", "walk", "--max-frames", str(FRAMES), "--size", "32", "--embeddings", "--out", str(tmp_path)]
    assert main(words) == 0
    said = json.loads((tmp_path / "summary.json").read_text())
    with open(tmp_path / "frames.jsonl", encoding="utf-8") as file:
        latency = np.array([json.loads(line)["latency_ms"] for line in file])
    assert said["frames"] == len(latency) == FRAMES
    assert np.load(tmp_path / "embeddings.npy", mmap_mode="r").shape[0] == FRAMES
    second, last = latency[1000:2000], latency[-1000:]
    assert np.median(last) <= 1.05 * np.median(second)
    assert np.percentile(last, 95) <= 1.2 * np.percentile(second, 95)
    assert resident[0] / 1e6 - said["rss_mb"]["warm"] < 20
