"""Several processes: gradients are those of all lanes together, each process has its own lanes, a resume keeps them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = """
import json, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from conftest import MovingData
from lightning.pytorch import Callback, Trainer
from tttstream.model import ModelConfig
from tttstream.state import pack
from tttstream.train.prediction import Prediction

folder, processes, strategy, accelerator = Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]

class Losses(Callback):
    def __init__(self, stop):
        self.seen, self.stop = [], stop
    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.seen.append(float(module.all_gather(outputs["loss"]).mean()))
        trainer.should_stop = len(self.seen) == self.stop

def run(stop=None, resume=None):
    torch.manual_seed(0)
    task = Prediction(ModelConfig(size=16, patch=8, dim=16, depth=1, heads=2), lr=1e-2, warmup=0)
    torch.nn.init.normal_(task.model.next_frame.change.weight, std=0.02)
    notes = Losses(stop)
    trainer = Trainer(
        accelerator=accelerator, devices=processes, strategy=strategy, max_steps=6, max_epochs=-1, logger=False,
        callbacks=[notes], enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        limit_val_batches=1, val_check_interval=4, num_sanity_val_steps=0, default_root_dir=folder,
    )
    trainer.fit(task, datamodule=MovingData(20, rows=4 // processes), ckpt_path=resume)
    return trainer, task, notes.seen

trainer, task, whole = run()
state = pack(task._states["train"])
weights = torch.cat([p.detach().float().cpu().flatten() for p in task.parameters()])
found = {"losses": whole, "state": state.double().sum(1).tolist(), "weights": weights.tolist()}
trainer, _, _ = run(3)
trainer.save_checkpoint(folder / "three.ckpt")
found["resumed"] = run(None, folder / "three.ckpt")[2]
(folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(found))
"""


def run(folder: Path, processes: int, strategy: str = "ddp", accelerator: str = "cpu") -> list[dict[str, Any]]:
    """Train in a process of its own (and those that it starts); what each of them found."""
    folder.mkdir()
    script = folder / "train.py"
    script.write_text(SCRIPT)
    words = [
        sys.executable,
        str(script),
        str(Path(__file__).parent),
        str(folder),
        str(processes),
        strategy,
        accelerator,
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("distributed")
    return run(folder / "one", 1, "auto")[0], run(folder / "two", 2)


Found = tuple[dict[str, Any], list[dict[str, Any]]]


def test_two_processes_do_what_one_does_with_all_lanes(found: Found) -> None:
    one, two = found
    for rank in two:
        torch.testing.assert_close(torch.tensor(rank["weights"]), torch.tensor(one["weights"]), rtol=0, atol=2e-4)
        assert rank["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert two[0]["weights"] == two[1]["weights"]


def test_each_process_carries_its_own_lanes(found: Found) -> None:
    one, two = found
    assert two[0]["state"] + two[1]["state"] == pytest.approx(one["state"], rel=1e-2, abs=1e-2)
    assert two[0]["state"] != two[1]["state"]


def test_a_resume_gives_every_process_its_lanes_back(found: Found) -> None:
    for rank in found[1]:
        assert rank["resumed"] == rank["losses"][3:]


@pytest.mark.gpu
def test_fully_sharded(tmp_path: Path) -> None:
    one, sharded = run(tmp_path / "one", 1, "auto", "gpu")[0], run(tmp_path / "sharded", 1, "fsdp", "gpu")[0]
    assert sharded["losses"] == pytest.approx(one["losses"], rel=1e-3)
    assert sharded["resumed"] == pytest.approx(sharded["losses"][3:], rel=1e-4)


def test_the_command_with_every_callback(tmp_path: Path) -> None:
    """Pictures, bar, both checkpoints, averaged weights and the export: no rank waits for one that has gone on."""
    (tmp_path / "averaged.yaml").write_text(
        "trainer:\n  callbacks+:\n    - class_path: lightning.pytorch.callbacks.EMAWeightAveraging\n"
    )
    pieces = [f"--config={name}" for name in ("trainer/fast", "trainer/ddp", "model/tiny", "data/walk")]
    words = [
        *(sys.executable, "-m", "tttstream", "fit", *pieces, "--config=task/prediction", "--config=averaged.yaml"),
        *("--trainer.max_steps=2", "--trainer.val_check_interval=1", "--trainer.limit_val_batches=1"),
        *("--model.dim=16", "--data.init_args.batch_size=1", "--data.init_args.length=4"),
        *("--data.init_args.workers=0", "--trainer.num_sanity_val_steps=0", "--trainer.max_time=null"),
    ]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    left = {path.name for path in (tmp_path / "out" / "train" / "version_0").iterdir()}
    assert {"checkpoints", "config.yaml", "metrics.csv", "model", "best", "pictures"} <= left
    assert [path.name for path in (tmp_path / "out" / "train").iterdir()] == ["version_0"]
