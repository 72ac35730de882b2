"""``hydra/sweeper=optuna``: Hydra's way to :mod:`imago.search`, in the package where Hydra looks for plugins."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import MISSING, DictConfig


@dataclass
class OptunaSweeperConf:
    """Settings of a search; see :class:`OptunaSweeper`."""

    defaults: list[Any] = field(default_factory=lambda: [{"sampler": "tpe"}, {"pruner": "median"}])
    _target_: str = "hydra_plugins.imago_optuna.OptunaSweeper"
    _recursive_: bool = False
    study: str | None = None
    n_trials: int = 20
    n_jobs: int = 1
    sampler: Any = MISSING
    pruner: Any = MISSING
    params: dict[str, str] | None = None


def _register() -> None:
    store = ConfigStore.instance()
    store.store(group="hydra/sweeper", name="optuna", node=OptunaSweeperConf, provider="imago")
    for group, name, target, settings in (
        ("sampler", "tpe", "optuna.samplers.TPESampler", {"_partial_": True}),
        ("sampler", "random", "optuna.samplers.RandomSampler", {"_partial_": True}),
        ("pruner", "median", "optuna.pruners.MedianPruner", {"n_startup_trials": 5, "n_warmup_steps": 4}),
        ("pruner", "hyperband", "optuna.pruners.HyperbandPruner", {}),
        ("pruner", "none", "optuna.pruners.NopPruner", {}),
    ):
        node = {"_target_": target, **settings}
        store.store(group=f"hydra/sweeper/{group}", name=name, node=node, provider="imago")


_register()


class OptunaSweeper(Sweeper):
    """Searches with Optuna; the study lies in the sweep's folder, and the same command again goes on with it.

    Args:
        study: name of the folder below ``logs/sweeps``; ``None`` for one that is made of the command.
        n_trials: how many trials there are to be in all, with those of earlier commands.
        n_jobs: processes that work on trials at the same time, each with its share of the cores and a GPU of its own.
        sampler: proposes: ``hydra/sweeper/sampler=tpe|random``, or any of Optuna's by its ``_target_``.
        pruner: ends hopeless trials: ``hydra/sweeper/pruner=median|hyperband|none``.
        params: what is varied, by keys, in the syntax of the command line.
    """

    def __init__(
        self,
        study: str | None,
        n_trials: int,
        n_jobs: int,
        sampler: DictConfig,
        pruner: DictConfig,
        params: dict[str, str] | None = None,
    ) -> None:
        self.study, self.n_trials, self.n_jobs = study, n_trials, n_jobs
        self.sampler, self.pruner = sampler, pruner
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Remember what a launcher needs."""
        from hydra.core.plugins import Plugins

        self.hydra_context: HydraContext = hydra_context
        self.config: DictConfig = config
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Sequence[Any]:
        """Carry the search out, or go on with it."""
        from imago.cli.search import carry_out

        return carry_out(self, arguments)
