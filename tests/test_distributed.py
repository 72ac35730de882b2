"""Two processes together take the step that one process takes alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import LambdaCallback

from helpers import configuration
from imago.checkpoints import read
from imago.data import ImageDataModule
from imago.data.sources import Digits
from imago.training.run import build_model

ROOT = Path(__file__).parents[1]
# Batch statistics and dropout differ between one batch of 16 and two of 8, so they are off here.
CASES = {
    "gan": ["model=gan", "model.discriminator.dropout=0", "model.gradient_clip=0.5"],
    "k=2": ["model=gan", "model.discriminator.dropout=0", "model.discriminator_steps=2"],
}
# Without the command around them: all in one other process, which forks, because starting one takes ten times as long.
STEPS = {
    "autoencoder": ["model=autoencoder", "model.encoder.width=8", "model.decoder.width=8", "conditional=true"],
    "vae": ["model=vae", "model.latent=6", "model.encoder.hidden=[16]", "model.decoder.hidden=[16]"],
    # In the mean of all 16 images some dimensions cost less than this, in that of 8 images others.
    "free bits": ["model=vae", "model.latent=16", "model.encoder.hidden=[16]", "model.free_bits=0.05"],
    "ddpm": [
        "model=ddpm",
        "model.network.width=8",
        "model.steps=100",
        "conditional=true",
        "model.p_uncond=0.3",
        "model/variance=learned",
        "model/loss=hybrid",
    ],
    "hvae": ["model=hvae", "model.width=8", "model.widest=8", "model.blocks=[1,1]", "model.gradient_clip=0.05"],
}


def weights(tmp_path: Path, name: str, options: list[str]) -> dict[str, torch.Tensor]:
    """The weights after 6 batches of a run in a process (or two) of its own."""
    arguments = [
        *options,
        "model/optimizer/generator=sgd",
        "model/optimizer/discriminator=sgd",
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
    environment["PYTHONPATH"] = str(ROOT / "src")
    program = ["-m", "imago", "train"] if "model.discriminator_steps=2" in options else [str(ROOT / "src" / "train.py")]
    command = [sys.executable, *program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (checkpoint,) = (tmp_path / name).glob("*/*/checkpoints/last.ckpt")
    content = read(checkpoint)
    assert content["progress"]["images_seen"] == 96
    return content["state_dict"]


def assert_same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    """The same weights, but for the rounding of sums in another order."""
    for name, value in one.items():

        def named(text: str, name: str = name) -> str:
            return f"{name}: {text}"

        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6, msg=named)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(case: str, tmp_path: Path) -> None:
    one = weights(tmp_path, "one", [*CASES[case], "trainer=cpu"])
    two = weights(tmp_path, "two", [*CASES[case], "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"])
    assert_same(one, two)


def stepped(case: str, devices: int) -> dict[str, torch.Tensor]:
    """The weights after 6 batches, of one process or of two forked ones."""
    torch.manual_seed(0)
    data = ImageDataModule(Digits(), batch_size=16)
    data.prepare()
    model = build_model(
        configuration(*STEPS[case], "data=digits", "model/optimizer/net=sgd", "model.optimizer.net.lr=0.1"),
        data.spec,
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="auto" if devices == 1 else "ddp_fork_find_unused_parameters_true",
        max_epochs=1,
        limit_train_batches=6,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        # Setting up several processes draws from torch's generator, or not; imago.training seeds it again as well.
        callbacks=[LambdaCallback(on_train_start=lambda *_: torch.manual_seed(1))],
    )
    trainer.fit(model, datamodule=data)
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, torch.Tensor]]]:
    """The weights of each case, after training in one process and in two."""
    path = tmp_path_factory.mktemp("steps") / "weights.pt"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    command = [sys.executable, __file__, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return torch.load(path)


@pytest.mark.parametrize("case", STEPS)
def test_two_forks_equal_one_process(case: str, steps: dict[str, list[dict[str, torch.Tensor]]]) -> None:
    one, two = steps[case]
    assert_same(one, two)


if __name__ == "__main__":
    torch.save({case: [stepped(case, devices) for devices in (1, 2)] for case in STEPS}, sys.argv[1])
