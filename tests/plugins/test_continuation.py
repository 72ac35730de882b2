"""A run of a model of one's own that is stopped and continued is the run that was never stopped, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import configuration
from imago.checkpoints import read
from imago.training.run import train
from test_resume import assert_equal, rows

# In batches of 16: the middle of an epoch; the two stages meet after 40 batches.
TWO_STAGES = ["model=two_stage", "data=digits", "model.autoencoder_images=640", "conditional=true"]
CASES = {
    "transformer": (["model=transformer", "data=digits", "model.width=8", "model.heads=2"], 12),
    "described": (["model=described", "data=described", "conditional=true"], 50),
    "first_stage": (TWO_STAGES, 30),
    "between_stages": (TWO_STAGES, 40),
    "second_stage": (TWO_STAGES, 50),
}


@pytest.mark.parametrize("case", CASES)
def test_stopped_and_continued_equals_never_stopped(case: str, tmp_path: Path) -> None:
    overrides, cut = CASES[case]

    def options(logs: str, updates: int, *more: str) -> dict[str, Any]:
        return configuration(
            *overrides, "data.batch_size=16", "logger=csv", "metrics=none", "trainer=cpu", "callbacks.samples.rows=1",
            "callbacks.samples.columns=3", "every.log=96", "every.samples=300", "every.likelihood=10000",
            f"max_updates={updates}", f"logs={tmp_path / logs}", *more,
        )  # fmt: skip

    total = cut + 15
    whole = train(options("whole", total), "x", tmp_path / "whole" / "run")
    train(options("cut", cut), "x", tmp_path / "cut" / "run")
    torch.manual_seed(12345)  # whatever happened in between must not matter
    second = train(options("cut", total, "resume=auto"), "x", tmp_path / "new")
    one, other = read(whole.last), read(second.last)
    for checkpoint in (one, other):
        del checkpoint["random"]["python"]  # beartype, which checks types while tests run, draws from it
    for key in ("state_dict", "optimizer_states", "progress", "random", "rows"):
        assert_equal(one[key], other[key], key)
    assert_equal(one["callbacks"]["EMA"], other["callbacks"]["EMA"])
    assert rows(whole.metrics) == rows(second.metrics)
    if overrides is TWO_STAGES:  # each logs what it minimises, one after the other
        first, last = ([bool(row[name]) for row in rows(whole.metrics)] for name in ("train/loss", "train/nats"))
        assert first.index(True) < last.index(True)
