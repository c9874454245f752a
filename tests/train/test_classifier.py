"""A classifier from videos to labels over a picture: fit, predict, export and watch agree on the same frames."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from tttstream import models
from tttstream.cli.main import main
from tttstream.errors import CheckpointError, ConfigError
from tttstream.frames import Frame
from tttstream.models.classifier import Classifier, Encoder, Opinion
from tttstream.models.frame import ModelConfig
from tttstream.streams import Stream
from tttstream.train.classification import Classification
from tttstream.train.export import read
from tttstream.views.overlay import Overlay, shortened

COLOURS = {"sit, down": (40, 200, 40), "run": (200, 40, 40), "walk about": (40, 40, 200)}
SMALL = ModelConfig(size=16, patch=8, dim=16, depth=1, heads=2)


def movie(path: Path, colour: tuple[int, int, int], frames: int) -> None:
    """Wide pictures whose left and right edges, which the middle square leaves out, are of another colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "crf": "12"})
        stream.width, stream.height, stream.pix_fmt = 96, 48, "yuv420p"
        stream.codec_context.thread_count = 1
        for number in range(frames):
            picture = np.full((48, 96, 3), 255 - np.array(colour), np.uint8)
            picture[:, 24:72] = colour
            picture[4 + number : 16 + number, 30:50] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which a classifier was trained on a csv for some steps, and made its predictions."""
    folder, before = tmp_path_factory.mktemp("classifier"), Path.cwd()
    for place, (name, colour) in enumerate(COLOURS.items()):
        for number in range(3):
            movie(folder / f"videos/{place}{number}.mp4", colour, 9 + number)
        for part, numbers in (("train", (0, 1)), ("test", (2,))):
            with open(folder / f"{part}.csv", "a", encoding="utf-8") as file:
                file.writelines(f'"{name}",videos/{place}{number}.mp4\n' for number in numbers)
    for part in ("train", "test"):
        text = (folder / f"{part}.csv").read_text("utf-8")
        (folder / f"{part}.csv").write_text("label,path\n" + text, "utf-8")
    os.chdir(folder)
    data = "tttstream.train.data"
    try:
        words = [
            *("fit", "--config", "trainer/fast", "--config", "model/tiny", "--config", "task/classification"),
            *("--model.dim=16", "--model.depth=1", "--task.init_args.classes=3", "--task.init_args.lr=0.01"),
            "--task.init_args.encoder=null",
            *("--task.init_args.warmup=0", f"--data={data}.VideoData", f"--data.train={data}.PathList"),
            *("--data.train.file=train.csv", f"--data.test={data}.PathList", "--data.test.file=test.csv"),
            *("--data.init_args.length=4", "--data.init_args.batch_size=2", "--data.init_args.workers=0"),
            *("--trainer.max_steps=12", "--trainer.val_check_interval=null", "--trainer.enable_progress_bar=false"),
            *("--trainer.enable_model_summary=false", "--trainer.limit_val_batches=0", "--trainer.log_every_n_steps=5"),
        ]
        assert main(words) == 0
        (checkpoint,) = folder.rglob("last.ckpt")
        run = ["--config", "out/train/version_0/config.yaml", f"--ckpt_path={checkpoint}"]
        assert main(["predict", *run]) == 0
        assert main(["predict", *run, "--csv=true"]) == 0
        assert main(["export", str(checkpoint), "exported"]) == 0
        yield folder
    finally:
        os.chdir(before)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


NAMES = sorted(COLOURS)


class TestEndToEnd:
    def test_predictions_have_names(self, here: Path) -> None:
        rows = lines(here / "out/train/version_1/predictions.jsonl")
        clips = lines(here / "out/train/version_1/clips.jsonl")
        assert [(Path(clip["clip"]).name, clip["frames"]) for clip in clips] == [(f"{n}2.mp4", 11) for n in range(3)]
        assert [clip["label_name"] for clip in clips] == list(COLOURS)
        assert sum(clip["right"] for clip in clips) == sum(clip["clip_name"] == clip["label_name"] for clip in clips)
        assert sum(clip["right"] for clip in clips) >= 2  # three colours, after twelve steps
        for clip in clips:
            last = [row for row in rows if row["clip"] == clip["clip"]][-1]
            assert [last[key] for key in ("clip_class", "clip_name", "probability")] == [
                clip[key] for key in ("clip_class", "clip_name", "probability")
            ]
            assert clip["clip_name"] == NAMES[clip["clip_class"]]
        assert all(row["name"] == NAMES[row["class"]] for row in rows)

    def test_tables(self, here: Path) -> None:
        for name in ("predictions", "clips"):
            with open(here / f"out/train/version_2/{name}.csv", newline="", encoding="utf-8") as file:
                table = list(csv.DictReader(file))
            rows = lines(here / f"out/train/version_1/{name}.jsonl")
            assert table == [{key: str(value) for key, value in row.items()} for row in rows]

    def test_the_content_of_the_folder(self, here: Path) -> None:
        config = json.loads((here / "exported/config.json").read_text("utf-8"))
        assert (config["names"], config["fitting"], config["model"]["size"]) == (NAMES, "crop", 32)
        trained = models.load(here / "out/train/version_0/model")
        assert trained.fingerprint() == models.load(here / "exported").fingerprint()
        assert models.load(str(here / "exported")).names == NAMES

    def test_watch_equals_predict_and_continues_bit_for_bit(self, here: Path) -> None:
        video = "videos/22.mp4"
        assert main(["watch", video, "--model", "exported", "--out", "whole"]) == 0
        told = lines(here / "whole/frames.jsonl")
        rows = [r for r in lines(here / "out/train/version_1/predictions.jsonl") if Path(r["clip"]).name == "22.mp4"]
        assert len(told) == len(rows) == 11
        for said, row in zip(told, rows, strict=True):
            assert said["labels"][0]["label"] == row["name"]
            assert said["labels"][0]["probability"] == pytest.approx(row["frame_probability"], abs=2e-4)
            assert said["so_far"][0]["label"] == row["clip_name"]
            assert said["so_far"][0]["probability"] == pytest.approx(row["probability"], abs=2e-4)
            assert {item["label"] for item in said["labels"]} == set(NAMES)
            assert sum(item["probability"] for item in said["labels"]) == pytest.approx(1, abs=1e-5)
        summary = json.loads((here / "whole/summary.json").read_text("utf-8"))
        assert summary["labels"] == told[-1]["so_far"]
        assert summary["size"] == 32
        part = ["watch", video, "--model", "exported", "--no-overlay"]
        assert main([*part, "--out", "first", "--max-frames", "5", "--save-state", "state"]) == 0
        assert main([*part, "--out", "rest", "--load-state", "state"]) == 0
        both = lines(here / "first/frames.jsonl") + lines(here / "rest/frames.jsonl")
        for said in (*told, *both):
            del said["latency_ms"]
        assert both == told

    def test_a_checkpoint_of_other_classes_is_refused(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (here / "other.csv").write_text("path,label\nvideos/00.mp4,run\nvideos/10.mp4,hop\nvideos/20.mp4,sit\n")
        words = ["test", "--config", "out/train/version_0/config.yaml", "--data.init_args.train=null"]
        words += ["--data.init_args.test.init_args.file=other.csv"]
        assert main([*words, f"--ckpt_path={next((here / 'out').rglob('last.ckpt'))}"]) == 2
        said = capsys.readouterr().err
        assert "the checkpoint's classes are run, sit, down, walk about; those of the data are hop, run, sit" in said
        assert "other.csv: 3 videos, separated by commas, columns path, label, header on line 1" in said


class TestModel:
    def test_the_same_square_as_training_takes(self) -> None:
        from tttstream.train.data import fitted

        pixels = torch.randint(0, 256, (1, 3, 33, 70), dtype=torch.uint8)
        expected = fitted(16)(pixels)
        assert torch.equal(Classifier(SMALL, 2).fitted(pixels), expected)
        assert not torch.equal(Classifier(SMALL, 2, fitting="squeeze").fitted(pixels), expected)

    @pytest.mark.parametrize("memory", ["ttt_mlp", "gru", "window"])
    def test_any_memory_can_be_watched(self, tmp_path: Path, memory: str) -> None:
        torch.manual_seed(0)
        model = Classifier(ModelConfig(**{**vars(SMALL), "memory": memory}), 7, names=[*"abcdefg"]).eval()
        model.save(tmp_path)
        stream = Stream(models.load(tmp_path), device="cpu")
        assert stream.surprises is memory.startswith("ttt")
        images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
        with torch.no_grad():
            said, _ = model(torch.from_numpy(images).permute(0, 3, 1, 2)[None])
        results = [stream.push(image) for image in images]
        for result, logits in zip(results, said.logits[0], strict=True):
            assert len(result.labels) == 5
            best, place = logits.softmax(-1).max(-1)
            assert result.labels[0].name == "abcdefg"[int(place)]
            assert result.labels[0].probability == pytest.approx(float(best), abs=1e-4)
        mean = said.logits[0].log_softmax(-1).mean(0).softmax(-1)
        assert results[-1].so_far[0].probability == pytest.approx(float(mean.max()), abs=1e-4)
        stream.reset()
        again = stream.push(images[0])
        for labels in (again.labels, again.so_far, results[0].so_far):
            assert [label.name for label in labels] == [label.name for label in results[0].labels]
            expected = [label.probability for label in results[0].labels]
            assert [label.probability for label in labels] == pytest.approx(expected, abs=1e-12)

    def test_an_encoder_and_old_checkpoints(self, tmp_path: Path) -> None:
        config = ModelConfig(**{**vars(SMALL), "size": 32})
        task = Classification(config, 2, encoder=Encoder("resnet18"))
        saved: dict[str, Any] = {"state_dict": {f"model.{k}": v for k, v in task.model.state_dict().items()}}
        shape = {**vars(config), "classes": 2, "encoder": "resnet18"}
        saved["tttstream"] = {"task": "Classification", "model": shape, "lanes": None}
        torch.save(saved, tmp_path / "old.ckpt")
        model = read(tmp_path / "old.ckpt")
        assert isinstance(model, Classifier)
        assert (model.names, model.encoder) == (["0", "1"], "resnet18")
        model.save(tmp_path / "model")
        assert models.load(tmp_path / "model").fingerprint() == model.fingerprint() != task.model.eval()
        result = Stream(models.load(tmp_path / "model"), device="cpu").push(np.zeros((40, 50, 3), np.uint8))
        assert result.surprise_map.shape == (1, 1)

    def test_mistakes(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="got 2 names for 3 classes"):
            Classifier(SMALL, 3, names=["a", "b"])
        with pytest.raises(ConfigError, match="fitting is 'stretch'"):
            Classifier(SMALL, 3, fitting="stretch")
        Classifier(SMALL, 3).save(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text("utf-8"))
        for changed in ({**config, "names": ["a"]}, {k: v for k, v in config.items() if k != "fitting"}):
            (tmp_path / "config.json").write_text(json.dumps(changed))
            with pytest.raises(CheckpointError, match=r"does not fit"):
                models.load(tmp_path)
        models.build("small", size=16).save(tmp_path / "frames")
        with pytest.raises(CheckpointError, match="is a FrameModel, expected a Classifier"):
            models.load_as(Classifier, tmp_path / "frames")

    def test_an_opinion_continues(self) -> None:
        one, other, logits = Opinion(["a", "b"]), Opinion(["a", "b"]), torch.randn(3, 2)
        one.push(logits[0])
        other.restore(json.loads(json.dumps(one.state())))
        assert one.push(logits[1]) == other.push(logits[1])


def test_labels_over_the_picture() -> None:
    torch.manual_seed(0)
    names = ["run", "a name that is much too long for the picture and has\na line break in it", "sit"]
    stream = Stream(Classifier(SMALL, 3, names=names), device="cpu")
    image = np.full((120, 160, 3), 120, np.uint8)
    result = stream.push(Frame(image))
    with_labels = Overlay().draw(image, result).copy()
    without = Overlay().draw(image, stream.push(Frame(image)).__class__(**{**vars(result), "labels": ()}))
    rows, columns = np.nonzero((with_labels != without).any(-1))
    height = 160 * 480 // 160 * 120 // 160
    assert (rows.min(), rows.max()) == (height - 8 - 60, height - 9)
    assert (columns.min(), columns.max()) == (10, 229)
    for place, label in enumerate(result.labels):  # a bar as long as the class is probable
        row = with_labels[height - 68 + 20 * place + 1, 10:230].astype(int)
        assert (row[:, 2] > 100).sum() == pytest.approx(1 + label.probability * 219, abs=2)
    assert shortened("run", 100, 13) == "run"
    assert shortened(names[1], 100, 13).endswith("…")
