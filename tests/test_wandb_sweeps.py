"""sweeps/: what ``wandb sweep`` is given, run with the command line that ``wandb agent`` makes of it."""

import queue
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import yaml
from wandb import wandb_agent

from helpers import Command
from imago.measures import better

SWEEPS = sorted((Path(__file__).parents[1] / "sweeps").glob("*.yaml"))


def command_of(sweep: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command line of W&B's own agent for the first values of every parameter."""
    made: list[list[str]] = []
    monkeypatch.setattr(wandb_agent, "AgentProcess", lambda command, **other: made.append(command) or MagicMock())
    agent = wandb_agent.Agent(MagicMock(), queue.Queue(), sweep_id="me/imago/abc")
    agent._sweep_command = list(sweep["command"])
    chosen = {key: {"value": p["values"][0] if "values" in p else p["min"]} for key, p in sweep["parameters"].items()}
    agent._command_run({"type": "run", "run_id": "r1", "program": sweep["program"], "args": chosen})
    return made[0]


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_an_agents_command_trains(file: Path, script: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = yaml.safe_load(file.read_text())
    assert sweep["metric"]["goal"] == {"low": "minimize", "high": "maximize"}[better(sweep["metric"]["name"]) or ""]
    for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.setenv(name, "")  # and take away again what the agent sets
        monkeypatch.delenv(name)
    command = command_of(sweep, monkeypatch)
    assert command[:3] == ["/usr/bin/env", "python", "src/train.py"]
    assert not [word for word in command if word.startswith(("-", "$"))]
    least = ["max_images=null", "max_updates=1", "logger=none", "metrics=none", "hydra.run.dir=run"]
    given = [word for word in command[3:] if not word.startswith("logger.")]
    code, _, err = script("train", *given, *least)
    assert code == 0, err
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    for key, choice in sweep["parameters"].items():
        if "/" not in key:
            value: Any = config
            for part in key.split("."):
                value = value[part]
            assert value == choice.get("min", choice.get("values", [None])[0])


def test_a_multirun_inside_an_agent_is_refused(script: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    code, _, err = script("train", "-m", "seed=1,2")
    assert code == 2
    assert err.startswith("error: -m: a W&B agent gives one combination at a time; leave -m out")
