"""Several processes together do what one does alone: steps, measurements, continued runs; and they end together.

The runs are forked from one other process, because starting one takes ten times as long.
"""

import gc
import json
import os
import shutil
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from helpers import CONF, TINY, configuration
from imago.checkpoints import read

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "PYTHONPATH": str(ROOT / "src")}
SGD = {
    name: ["model/optimizer/generator=sgd", "model/optimizer/discriminator=sgd"] if "gan" in name else
    ["model/optimizer/net=sgd", "model.optimizer.net.lr=0.1"]
    for name in TINY
}  # fmt: skip
MEASURED = ["metrics=classifier", "metrics.samples=100", "metrics.batch_size=32", "callbacks.likelihood.batch_size=64"]
# Every model, and variants whose step looks at more than single images.
CASES: dict[str, list[str]] = {
    **{name: [f"model={name}", *options, *SGD[name]] for name, options in TINY.items()},
    "dropout": ["model=gan", *TINY["gan"], *SGD["gan"], "model.gradient_clip=0.5", *MEASURED],
    "persistent chains": ["model=rbm", *TINY["rbm"], *SGD["rbm"], "model.persistent=true", "model.chains=20"],
    "k=2": ["model=gan", *TINY["gan"], *SGD["gan"], "model.discriminator_steps=2"],
    "penalty": ["model=gan", *TINY["gan"], *SGD["gan"], "model/penalty=gradient_penalty"],
    "conditional autoencoder": ["model=autoencoder", *TINY["autoencoder"], *SGD["vae"], "conditional=true"],
    # In the mean of all 16 images some dimensions cost less than this, in that of 8 images others.
    "free bits": ["model=vae", "model.latent=16", "model.encoder.hidden=[16]", "model.free_bits=0.05", *SGD["vae"]],
    "hybrid": ["model=ddpm", *TINY["ddpm"], *SGD["ddpm"], "model/variance=learned", "model/loss=hybrid",
               "conditional=true", "model.p_uncond=0.3", "model.network.dropout=0.2"],
    "transport": ["model=flow_matching", *TINY["flow_matching"], *SGD["flow_matching"], "conditional=true",
                  "model.coupling=optimal_transport"],
    "clipped": ["model=hvae", *TINY["hvae"], *SGD["hvae"], "model.gradient_clip=0.05"],
    "compiled": ["model=vae", *TINY["vae"], *SGD["vae"], "compile=eager"],
    "measured": ["model=vae", *TINY["vae"], *SGD["vae"], *MEASURED],
}  # fmt: skip
# Measured by each process with running means of its own, unless they are made alike.
APART = "batch norm apart"
ELASTIC = [32, 64, 96]


def options(folder: Path, case: str, *more: str) -> dict[str, Any]:
    """The configuration of a run of 6 batches."""
    return configuration(
        *CASES.get(case, []), "data=digits", "data.batch_size=16", "max_images=96", "logger=csv", "every.log=32",
        "every.likelihood=48", "callbacks.likelihood.images=100", f"logs={folder}",
        *([] if MEASURED[0] in CASES.get(case, []) else ["metrics=none", "callbacks.samples=null"]), *more,
    )  # fmt: skip


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def train_all(folder: Path, configurations: dict[str, dict[str, Any]], processes: int) -> None:
    """Carry out runs one after the other, without pictures of their curves."""
    from imago.training import run

    run.draw_curves = lambda *given: None
    gc.freeze()  # what is there by now is searched for garbage, and so copied, by no fork
    in_forks([partial(run.train, config, case, folder / case) for case, config in configurations.items()], processes)


def use(run: Path, folder: Path, processes: int) -> None:
    """Sample and evaluate a run."""
    from imago.cli import evaluate, sample

    with initialize_config_dir(str(CONF), version_base="1.3"):
        common = [f"checkpoint={run}", "devices=auto", "device=cpu"]
        drawn = compose("sample", [*common, f"out={folder / f'{processes}.npz'}", "n=10", "batch_size=3"])
        given = ["batch_size=50", "metrics=classifier", "metrics.samples=60", "metrics.batch_size=25", "importance=3"]
        measured = compose("evaluate", [*common, *given])
    in_forks([partial(sample.main, drawn), partial(evaluate.main, measured)], processes)
    shutil.move(run / "evaluation.json", folder / f"{processes}.json")


def in_forks(works: list[Callable[[], object]], processes: int) -> None:
    """Work one after the other, in one forked process or in several as torchrun would start them."""
    ports = [free_port() for _ in works]
    children = []
    for rank in range(processes):
        child = os.fork()
        if not child:
            code = 1
            try:
                for work, port in zip(works, ports, strict=True):
                    if processes > 1:
                        os.environ.update(
                            TORCHELASTIC_RUN_ID="test", RANK=str(rank), LOCAL_RANK=str(rank), MASTER_PORT=port,
                            WORLD_SIZE=str(processes), LOCAL_WORLD_SIZE=str(processes),
                        )  # fmt: skip
                    work()
                code = 0
            except BaseException:
                traceback.print_exc()
                raise
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    failed = sum(os.waitpid(child, 0)[1] for child in children)
    assert not failed


def carry_out(folder: Path) -> None:
    """All runs of this file, alone and with two processes."""
    two = ["trainer=ddp_cpu"]
    config = {case: options(folder, case, "trainer=cpu") for case in CASES}
    train_all(folder / "one", config, 1)
    trainer = options(folder, "", *two)["trainer"]
    config = {case: {**alone, "trainer": trainer} for case, alone in config.items()}
    config[APART] = options(folder, "dcgan", *two, "trainer.sync_batchnorm=false", "metrics=classifier",
                            "metrics.samples=100", "metrics.batch_size=32")  # fmt: skip
    train_all(folder / "two", config, 2)
    for k, (limit, processes) in enumerate(zip(ELASTIC, (2, 1, 2), strict=True)):
        resume = [f"resume={folder / 'elastic' / 'ddpm'}"] if k else []
        trainer = "ddp_cpu" if processes == 2 else "cpu"
        config = {"ddpm": options(folder, "ddpm", f"trainer={trainer}", f"max_images={limit}", *resume)}
        train_all(folder / "elastic", config, processes)
    if "measured" in CASES:
        for processes in (1, 2):
            use(folder / "one" / "measured", folder, processes)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs."""
    folder = tmp_path_factory.mktemp("runs")
    environment = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])}
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return folder


def last(run: Path) -> dict[str, Any]:
    return read(run / "checkpoints" / "last.ckpt")


def summary(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "summary.json").read_text())
    assert content["status"] == "completed"
    assert "problems" not in content, content["problems"]
    return content


def assert_same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    """The same weights, but for the rounding of sums in another order."""
    assert one.keys() == two.keys()
    for name, value in one.items():

        def named(text: str, name: str = name) -> str:
            return f"{name}: {text}"

        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=2e-6, msg=named)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(case: str, runs: Path) -> None:
    one, two = last(runs / "one" / case), last(runs / "two" / case)
    assert one["progress"]["images_seen"] == two["progress"]["images_seen"] == 96
    assert_same(one["state_dict"], two["state_dict"])
    alone, together = summary(runs / "one" / case), summary(runs / "two" / case)
    assert together["device_count"] == 2
    assert together["train"] == pytest.approx(alone["train"], rel=1e-3, abs=1e-5)
    assert alone.get("metrics", {}).keys() == together.get("metrics", {}).keys()
    for name, measured in alone.get("metrics", {}).items():
        assert together["metrics"][name]["value"] == pytest.approx(measured["value"], rel=2e-3, abs=1e-4), name


def test_all_images_are_measured_and_drawn_once(runs: Path) -> None:
    metrics = summary(runs / "two" / "measured")["metrics"]
    assert metrics["val/bpd"]["protocol"]["images"] == 100
    assert metrics["val/fd_classifier"]["protocol"]["samples"] == 100
    grid = "samples/images-0000000096.png"
    one, two = (np.asarray(Image.open(runs / name / "measured" / grid), dtype=int) for name in ("one", "two"))
    assert one.shape == two.shape
    assert np.abs(one - two).max() <= 1  # of 255 levels


def test_batch_norm_is_of_all_processes_unless_it_is_told_not_to_be(runs: Path) -> None:
    assert summary(runs / "two" / "dcgan")["batch_norm"] == "over all processes"
    assert summary(runs / "two" / APART)["batch_norm"] == "of each process"
    assert "batch_norm" not in summary(runs / "one" / "dcgan")
    assert "batch_norm" not in summary(runs / "two" / "vae")


def test_another_number_of_processes_continues_a_run(runs: Path) -> None:
    whole, parts = last(runs / "one" / "ddpm"), last(runs / "elastic" / "ddpm")
    assert parts["progress"]["images_seen"] == 96
    assert_same(whole["state_dict"], parts["state_dict"])


def test_sampling_and_evaluating_are_shared_too(runs: Path) -> None:
    one, two = (np.load(runs / f"{n}.npz")["images"] for n in (1, 2))
    assert len(one) == 10
    np.testing.assert_array_equal(one, two)
    one, two = (json.loads((runs / f"{n}.json").read_text()) for n in (1, 2))
    assert {"test/bpd", "test/iw/bpd", "fd_classifier", "copies"} <= {result["name"] for result in one}
    for result, other in zip(one, two, strict=True):
        assert other["name"] == result["name"]
        assert other["value"] == pytest.approx(result["value"], rel=1e-9)


if __name__ == "__main__":
    for case in set(CASES).difference(sys.argv[2:] or CASES):
        del CASES[case]
    carry_out(Path(sys.argv[1]))
