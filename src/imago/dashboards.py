"""The loggers beside metrics.csv, chosen by the ``logger`` group."""

import os
from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from imago.errors import UserError
from imago.runs import Run

SECONDS = "time/training_seconds"
Mode = Literal["online", "offline", "disabled"]


def wandb_mode(mode: Literal["auto"] | Mode) -> Mode:
    """``auto`` becomes online where an API key is configured, else offline; nothing ever asks for one."""
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_MODE") in get_args(Mode):
        return cast(Mode, os.environ["WANDB_MODE"])
    import wandb

    return "online" if wandb.login(prompt=False) else "offline"


def wandb(
    run: Run,
    name: str,
    config: Mapping[str, Any],
    tags: list[str],
    group: str | None,
    project: str = "imago",
    entity: str | None = None,
    mode: Literal["auto", "online", "offline", "disabled"] = "auto",
) -> "WandbRun":
    """A Weights & Biases run whose curves are drawn over images seen.

    Args:
        run: the run directory; offline runs lie in its ``wandb/``.
        name: the run's name.
        config: the resolved configuration.
        tags: labels to filter by.
        group: the sweep that the run belongs to.
        project: the W&B project.
        entity: the W&B team or user, ``None`` for the default one.
        mode: ``auto`` is online where a key is configured, else offline.
    """
    import wandb as weights_and_biases

    mode_now = wandb_mode(mode)
    # An offline run cannot be appended to; online, a continued run goes on in the same W&B run.
    known = run.summary.get("wandb_id") if mode_now == "online" else None
    settings = weights_and_biases.Settings(console="off", silent=True)
    experiment = weights_and_biases.init(
        project=project, entity=entity, name=name, group=group, tags=tags, config=dict(config), dir=str(run.path),
        mode=mode_now, id=known, resume="allow" if known else None, settings=settings, reinit="finish_previous",
    )  # fmt: skip
    experiment.define_metric("images_seen")
    experiment.define_metric("*", step_metric="images_seen")
    run.update(wandb_id=experiment.id, wandb_mode=mode_now)
    return WandbRun(run, experiment)


class WandbRun(WandbLogger):
    """Lightning's logger, with what one must know of a run's numbers in the W&B run's own summary.

    There are ``likelihood`` (its kind), ``data``, ``parameters/<player>`` and ``parameters/total``; for each measured
    number ``protocol/<number>``, one line; where samples were measured, ``seconds_per_sample`` and ``network_calls``.

    Args:
        run: the run directory, whose summary knows all this.
        experiment: the W&B run.
    """

    def __init__(self, run: Run, experiment: Any) -> None:
        super().__init__(experiment=experiment)
        self.run = run
        self._seconds: float | None = None
        self._told: dict[str, Any] = {}
        self._tell()

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log a row, with the training seconds of the last one that had them: W&B draws over what stands in a row."""
        self._seconds = metrics.get(SECONDS, 0.0 if metrics.get("images_seen") == 0 else self._seconds)
        timed = {} if self._seconds is None or "images_seen" not in metrics else {SECONDS: self._seconds}
        super().log_metrics({**metrics, **timed}, step)
        self._tell()

    def finalize(self, status: str) -> None:
        """Complete the summary."""
        self._tell()
        super().finalize(status)

    def _tell(self) -> None:
        facts = facts_of(self.run.summary)
        new = {key: fact for key, fact in facts.items() if self._told.get(key) != fact}
        if new:
            self.experiment.summary.update(new)
        self._told = facts


def facts_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What a W&B run's summary says beside the last value of each curve: see :class:`WandbRun`.

    Args:
        summary: of the run directory.
    """
    facts = {key: summary[key] for key in ("likelihood", "data") if key in summary}
    facts |= {f"parameters/{player}": count for player, count in summary.get("parameters", {}).items()}
    for name, result in summary.get("metrics", {}).items():
        protocol = result["protocol"]
        facts[f"protocol/{name}"] = "; ".join(f"{key.replace('_', ' ')} {told}" for key, told in protocol.items())
        facts |= {key: protocol[key] for key in ("seconds_per_sample", "network_calls") if key in protocol}
    return facts


def tensorboard(run: Run) -> TensorBoardLogger:
    """Event files in the run directory's ``tensorboard/``.

    Raises:
        UserError: tensorboard is not installed.
    """
    try:
        return TensorBoardLogger(save_dir=run.path, name="tensorboard", version="")
    except ModuleNotFoundError:
        raise UserError("logger=tensorboard: not installed; pip install tensorboard, or use logger=csv") from None
