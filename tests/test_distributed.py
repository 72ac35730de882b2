"""Two processes together take the step that one process takes alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from imago.checkpoints import read

ROOT = Path(__file__).parents[1]
# Batch statistics and dropout differ between one batch of 16 and two of 8, so they are off here.
CASES = {
    "gan": ["model=gan", "model.discriminator.dropout=0", "model.gradient_clip=0.5"],
    "k=2": ["model=gan", "model.discriminator.dropout=0", "model.discriminator_steps=2"],
}


def weights(tmp_path: Path, name: str, options: list[str]) -> dict[str, torch.Tensor]:
    """The weights after 6 batches of a run in a process (or two) of its own."""
    arguments = [
        *options,
        "optimizer@model.optimizer.generator=sgd",
        "optimizer@model.optimizer.discriminator=sgd",
        "model.generator.hidden=[16]",
        "model.discriminator.hidden=[16]",
        "data.batch_size=16",
        "max_images=96",
        "logger=csv",
        "metrics=none",
        "every.log=32",
        f"logs={tmp_path / name}",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    command = [sys.executable, str(ROOT / "src" / "train.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (checkpoint,) = (tmp_path / name).glob("*/*/checkpoints/last.ckpt")
    content = read(checkpoint)
    assert content["progress"]["images_seen"] == 96
    return content["state_dict"]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(case: str, tmp_path: Path) -> None:
    one = weights(tmp_path, "one", [*CASES[case], "trainer=cpu"])
    two = weights(tmp_path, "two", [*CASES[case], "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"])
    for name, value in one.items():
        torch.testing.assert_close(
            two[name], value, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
