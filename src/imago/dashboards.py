"""The loggers beside metrics.csv, chosen by the ``logger`` group."""

import os
from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from imago.errors import UserError
from imago.runs import Run

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
) -> WandbLogger:
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
    return WandbLogger(experiment=experiment)


def tensorboard(run: Run) -> TensorBoardLogger:
    """Event files in the run directory's ``tensorboard/``.

    Raises:
        UserError: tensorboard is not installed.
    """
    try:
        return TensorBoardLogger(save_dir=run.path, name="tensorboard", version="")
    except ModuleNotFoundError:
        raise UserError("logger=tensorboard: not installed; pip install tensorboard, or use logger=csv") from None
