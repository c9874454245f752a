"""What is planted into streams, the contrast that surprise learns from it, and the measures on spliced streams."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from tttstream.errors import ConfigError
from tttstream.evaluation.spliced import DETECTORS, WARMUP, WINDOW, Spliced, alarms, judge, table
from tttstream.state import pack
from tttstream.train.novelty import Novelty, contrast
from tttstream.train.planting import excursion, plant, sensor_noise

Make = Callable[..., Any]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TestPlanting:
    frames = torch.randint(0, 256, (6, 8, 3, 32, 32), generator=seeded(9), dtype=torch.uint8)

    def test_only_covered_pixels_change(self) -> None:
        frames, cover, age = plant(self.frames, 1.0, seeded())
        untouched = (cover == 0)[:, :, None].expand_as(frames)
        assert torch.equal(frames[untouched], self.frames[untouched])
        assert (frames != self.frames).any()
        assert not cover[age < 0].any()
        assert 0 < cover[age >= 0].mean() < 0.5

    def test_it_stays_to_the_end_once_it_is_there(self) -> None:
        age = plant(self.frames, 1.0, seeded()).age
        assert (age[:, 0] == -1).all()
        assert (age[:, -1] >= 0).all()
        later = age[:, 1:][age[:, :-1] >= 0]
        assert torch.equal(later, age[:, :-1][age[:, :-1] >= 0] + 1)

    def test_a_share_of_none(self) -> None:
        frames, cover, age = plant(self.frames, 0.0, seeded())
        assert torch.equal(frames, self.frames)
        assert not cover.any()
        assert (age == -1).all()

    def test_the_result_depends_only_on_the_generator(self) -> None:
        first, again, other = (plant(self.frames, 1.0, seeded(seed)).frames for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_excursions_leave_and_come_back(self) -> None:
        frames, away = excursion(self.frames, 1.0, seeded())
        assert not away[:, [0, -1]].any()
        assert (away.max(1).values > 0).all()
        here = (away == 0)[:, :, None, None, None].expand_as(frames)
        assert torch.equal(frames, torch.where(here, self.frames, self.frames.roll(1, 0)))
        assert torch.equal(away.clamp(max=1).sum(1), away.max(1).values)

    def test_noise_is_the_clips_own(self) -> None:
        clip = torch.arange(6)[:, None].expand(6, 8)
        grey = torch.full((6, 8, 3, 32, 32), 128, dtype=torch.uint8)
        spread = sensor_noise(grey, clip, 20.0, seeded()).float().std((2, 3, 4))
        assert (spread.std(1) < 0.5).all()
        assert spread.mean(1).max() > 5
        assert spread.max() < 22
        assert torch.equal(sensor_noise(grey, clip, 0.0, seeded()), grey)

    def test_one_row_has_no_excursion(self) -> None:
        frames, away = excursion(self.frames[:1], 1.0, seeded())
        assert torch.equal(frames, self.frames[:1])
        assert not away.any()


class TestContrast:
    def losses(self, ratio: float) -> tuple[torch.Tensor, ...]:
        cover = torch.zeros(2, 6, 9)
        cover[:, 3:, 4] = 1.0
        new, settled = torch.ones(2, 6, dtype=torch.bool), torch.ones(2, 6, dtype=torch.bool)
        before = torch.where(cover > 0, ratio * 5.0, 5.0)
        return before, cover, new, settled

    def test_it_falls_if_new_patches_have_a_higher_loss(self) -> None:
        values = [float(contrast(*self.losses(ratio), 1.0)) for ratio in (0.5, 1.0, 4.0, 50.0)]
        assert values == sorted(values, reverse=True)

    def test_it_does_not_depend_on_the_scale(self) -> None:
        before, *rest = self.losses(3.0)
        assert float(contrast(before * 100, *rest, 1.0)) == pytest.approx(float(contrast(before, *rest, 1.0)), rel=1e-4)

    def test_a_level_that_moves_costs(self) -> None:
        before, cover, *rest = self.losses(1.0)
        restless = before * torch.linspace(0.5, 2, 6)[None, :, None]
        assert contrast(restless, 0 * cover, *rest, 1.0) > 0.05 + contrast(before, 0 * cover, *rest, 1.0)

    def test_without_new_or_settled_patches(self) -> None:
        before, cover, new, settled = self.losses(3.0)
        assert torch.isfinite(contrast(before, cover, ~new, settled, 1.0))
        assert float(contrast(before, cover, new, ~settled, 1.0)) == 0.0


class TestTask:
    def test_training_separates_new_patches(self, tiny: Make, moving: Make) -> None:
        torch.manual_seed(0)
        made = Novelty(tiny(patch=4))
        frames, cover, age = plant(moving(rows=4, frames=8).train_dataloader().data[0].frames, 1.0, seeded())
        cover = torch.nn.functional.avg_pool2d(cover, 4).flatten(2)
        optimizer = torch.optim.Adam([p for p in made.parameters() if p.requires_grad], 1e-2)
        values = []
        for _ in range(15):
            losses = made.run_segment(frames, None, None)[0].losses
            assert losses is not None
            value = contrast(losses.before, cover, age >= 0, torch.ones_like(age, dtype=torch.bool), 1.0)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            values.append(value.item())
        assert values[-1] < 0.8 * values[0]

    @pytest.mark.filterwarnings("ignore:The dirpath has changed")
    def test_a_resumed_run_plants_the_same_things(
        self, tiny: Make, moving: Make, trainer: Make, tmp_path: Path
    ) -> None:
        def run(seed: int, **options: Any) -> list[float]:
            torch.manual_seed(seed)
            seen: list[float] = []
            keep = ModelCheckpoint(tmp_path / str(seed), filename="{step}", every_n_train_steps=3, save_top_k=-1)
            made = trainer(max_steps=6, enable_checkpointing=True, callbacks=[keep, _Note(seen, "train/loss")])
            made.fit(Novelty(tiny(patch=4), warmup=2), datamodule=moving(20, frames=12), **options)
            return seen

        whole = run(0)
        assert run(1, ckpt_path=tmp_path / "0" / "step=3.ckpt") == whole[3:]

    def test_test_writes_the_table(self, tiny: Make, moving: Make, trainer: Make, capsys: Any) -> None:
        made, run = Novelty(tiny(patch=4), planted_in_test=1.0), trainer()
        run.test(made, datamodule=moving(frames=12))
        assert run.log_dir is not None
        assert (Path(run.log_dir) / "novelty.md").read_text().startswith("| detector |")
        assert {f"test/{name}/all/auroc" for name in DETECTORS} <= set(run.callback_metrics)
        assert "test/mse" in run.callback_metrics

    def test_a_stream_waits_while_its_row_has_no_frames(self, tiny: Make, moving: Make) -> None:
        frames = moving(rows=2, frames=8).train_dataloader().data[0].frames
        whole = Novelty(tiny(patch=4)).eval()
        valid = torch.ones(2, 11, dtype=torch.bool)
        valid[0, 3:6], valid[1, :1], valid[1, 9:] = False, False, False
        gappy = torch.zeros(2, 11, *frames.shape[2:], dtype=frames.dtype)
        gappy[valid] = frames.flatten(0, 1)
        with torch.no_grad():
            expected = whole.watch(frames, torch.ones(2, 8, dtype=torch.bool))
            after, whole._states["spliced"] = whole._states["spliced"], None
            pieces = [whole.watch(gappy[:, part], valid[:, part]) for part in (slice(0, 5), slice(5, 11))]
        torch.testing.assert_close(torch.cat(pieces, 1)[valid].view(2, 8), expected)
        torch.testing.assert_close(pack(whole._states["spliced"]), pack(after))

    @pytest.mark.parametrize(
        "changes", [{"memory": "gru"}, {"memory": "ttt"}, {"memory": "ttt_slots"}, {"registers": 2}]
    )
    def test_a_memory_without_a_surprise_of_patches_is_refused(self, tiny: Make, changes: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match="the surprise of patches needs a ttt_ memory"):
            Novelty(tiny(**changes))


class _Note(ModelCheckpoint):
    """Records the logged values, step by step."""

    def __init__(self, seen: list[float], name: str) -> None:
        super().__init__(save_top_k=0)
        self._seen, self._name = seen, name

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self._seen.append(float(trainer.callback_metrics[self._name]))


class TestMeasures:
    def stream(self, length: int, events: dict[int, str], height: float) -> Spliced:
        noise = np.random.default_rng(0).normal(0, 0.002, length)
        image = np.zeros((8, 8, 3), np.uint8)
        made = Spliced()
        for at in range(length):
            made.add(image, float(np.exp(noise[at] + (height if at in events else 0))), 1.0, events.get(at))
        return made

    def test_clear_events_are_found_without_delay(self) -> None:
        report = judge([self.stream(400, {100: "cut", 200: "thing", 300: "cut"}, 1.0)])
        assert report["surprise"]["all"] == {
            "events": 3,
            "auroc": 1.0,
            "found": 1.0,
            "delay_frames": 0.0,
            "false_alarms_per_minute": 0.0,
        }
        assert report["surprise"]["cut"]["events"] == 2
        assert report["frozen"]["all"]["auroc"] == 0.5  # a score that never changes
        assert report["frozen"]["all"]["found"] == 0.0
        assert "| surprise | cut | 2 | 1.000 | 1.00 | 0.0 | 0.00 |" in table(report)

    def test_false_alarms_are_counted_by_the_minute(self) -> None:
        made = self.stream(1530, {700: "cut", 900: "x", 1100: "x"}, 1.0)
        made.events = made.events[:1]
        false = judge([made])["surprise"]["all"]["false_alarms_per_minute"]
        assert false == pytest.approx(2 / ((1530 - WARMUP - 2 * WINDOW) / 25 / 60))

    def test_an_alarm_lasts_until_the_score_falls(self) -> None:
        assert alarms(np.array([0, 4, 2, 4, 1, 4, 0.0])) == [1, 5]

    def test_events_at_the_edges_do_not_count(self) -> None:
        made = self.stream(200, {5: "cut", 100: "cut", 195: "cut"}, 1.0)
        assert made.counted() == [(100, "cut")]
