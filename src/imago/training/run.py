"""One training run, from a checked configuration to a summary."""

import contextlib
import inspect
import logging
import os
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer, seed_everything
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from imago.capacity import affordable, enough, exhausted
from imago.checkpoints import AtomicCheckpointIO
from imago.config import Settings, build, check, target
from imago.data import ImageDataModule
from imago.data.places import remember
from imago.errors import Interrupted, UserError, printable, reason_of
from imago.evaluation import SampleQuality
from imago.figures.curves import draw_curves
from imago.images import ImageSpec
from imago.loggers import Dashboard
from imago.measures import better
from imago.models.base import GenerativeModel, count_parameters, knows_likelihood
from imago.processes import agreed_devices, launch, of_first
from imago.runs import (
    CSVLogger,
    Run,
    alone_in,
    claim,
    device_name,
    environment,
    forget_peak_memory,
    peak_memory_mib,
)
from imago.search import Reporter, objectives_of
from imago.sweeps import Job
from imago.tables import read_table
from imago.training.advice import before_training
from imago.training.callbacks.checkpoints import Checkpoints
from imago.training.callbacks.common import find
from imago.training.callbacks.interruption import Interruption
from imago.training.callbacks.limits import Limits
from imago.training.callbacks.log import TrainingLog
from imago.training.callbacks.measuring import Measuring
from imago.training.callbacks.pruning import Pruning
from imago.training.continuing import find_checkpoint, find_run, take_up
from imago.training.devices import SyncBatchNorms, batch_norm_of, together
from imago.untrusted import first_line

FLOAT = 4  # bytes of a number


def train(
    config: Mapping[str, Any],
    name: str,
    directory: Path,
    job: Job | None = None,
    choices: Mapping[str, Any] | None = None,
    reporter: Reporter | None = None,
    command: str | None = None,
) -> Run:
    """Train a model as configured.

    Args:
        config: the resolved configuration of train.yaml, as plain types.
        name: the run's name, such as ``gan-cifar10``.
        directory: where a new run directory is made.
        job: of the sweep that the run belongs to.
        choices: Hydra's, by group, for the summary.
        reporter: to the search that the run is a trial of.
        command: that repeats the run alone, for the summary; ``None`` for the one that started this process.

    Returns:
        The run directory with its complete summary.

    Raises:
        UserError: something in the configuration cannot be done; nothing was trained.
        Interrupted: a signal ended the run, after a checkpoint was written.
        Exception: whatever broke training; the summary says ``failed``.
    """
    settings, began = check(config), time.monotonic()
    prepare_process()
    with Interruption() as interruption, ExitStack() as held:
        seed_everything(settings.seed, verbose=False)
        data: ImageDataModule = build(config["data"], "data")
        data.prepare()
        model = build_model(config, data.spec)
        model.managed, data.endless = True, True
        trainer = build_trainer(config)
        forget_peak_memory(trainer.strategy.root_device)
        continued = find_run(settings, config, data, job) if writes() else None
        if continued is not None:
            held.enter_context(alone_in(continued))
        stopped = None if continued is None else find_checkpoint(continued, settings, config, data)
        metrics: SampleQuality = build(config["metrics"], "metrics")
        metrics.prepare(data, trainer.strategy.root_device)
        check_objective(settings.objective, config["callbacks"], model, metrics)
        # Nothing is written before this line: whatever was wrong with the command has been said.
        held.enter_context(together(trainer))
        run = Run(continued) if continued is not None else open_run(directory, held) if writes() else None
        place, stopped = of_first((None if run is None else run.path, stopped))
        if run is None:
            assert place is not None
            run = Run(place, write=False)
        checkpoint_path = None if stopped is None else stopped.checkpoint
        with begun(run, model, new=stopped is None), concluded(run, interruption):
            if stopped is not None and run.write:
                take_up(run, stopped)
            if job is None and settings.name is None and isinstance(given := run.summary.get("name"), str):
                name = printable(given)  # of a run that a sweep began
            run.write_config(config)
            if run.write:
                remember(*data.places)
            about = describe(config, name, data, model, trainer)
            notices = [*metrics.notices, *before_training(model, data)]
            run.update(**about, choices=dict(choices or {}), status="running", notices=notices)
            if job is not None:
                run.update(sweep=job.recorded)
            if command is not None:
                run.update(command=command)
            if run.write:
                announce_start(run, data, checkpoint_path)
            if settings.compile:
                backend = "inductor" if settings.compile is True else settings.compile
                model.compile_networks(backend)
                if run.write:
                    print(f"compiles the networks with {backend}: the first steps and measurements wait for it")
            group = None if job is None else job.folder.name
            with connected(trainer, run, config, settings, name, group):
                ends = (settings.max_images, settings.max_updates, settings.max_seconds, settings.max_wall_seconds)
                limits = Limits(*ends, began, settings.max_cpu_seconds)
                chosen = [
                    build_with(node, f"callbacks.{key}", run=run, metrics=metrics, config=config)
                    for key, node in config["callbacks"].items()
                    if node is not None
                ]
                framework: list[Callback] = [limits, interruption]
                if reporter is not None:
                    framework.append(Pruning(objectives_of(settings.objective)[0], reporter, run))
                trainer.callbacks = in_order(chosen, framework)  # type: ignore[attr-defined]
                with warnings.catch_warnings():
                    # The stream is endless and has no workers, both on purpose.
                    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
                    trainer.fit(model, datamodule=data, ckpt_path=checkpoint_path, weights_only=True)
                conclude(run, trainer, model, limits, settings.objective)
    return run


def check_objective(
    objective: str | list[str] | None, callbacks: Mapping[str, Any], model: GenerativeModel, metrics: SampleQuality
) -> None:
    """Refuse to train for a measure that the run would never have; of callbacks that are not imago's nothing is known.

    Raises:
        UserError: naming what will be measured.
    """
    targets = [str(node.get("_target_")) for node in callbacks.values() if node is not None]
    if objective is None or not all(target.startswith("imago.") for target in targets):
        return
    likelihood = ["bpd", "nats"] if knows_likelihood(model) else []
    measures = {"MeasureLikelihood": likelihood, "MeasureQuality": metrics.names}
    measured = [f"val/{name}" for target in targets for name in measures.get(target.rpartition(".")[2], [])]
    for name in objectives_of(objective):
        if name.startswith("val/") and better(name) is not None and name not in measured:
            told = f"it measures {', '.join(measured)}" if measured else "its metrics and callbacks measure nothing"
            raise UserError(f"objective={name}: this run would not measure it; {told}")


def prepare_process() -> None:
    """Keep Lightning quiet about what is no news, and torch from looking for a GPU that is not there."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # which accelerators are absent is no news
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)  # nor which processes there are
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)
    if not torch.cuda.is_available():
        # Without a GPU, a CUDA build of torch looks for one at every optimiser step (0.2 ms) unless told there is none.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def writes() -> bool:
    """Whether this process writes: of several processes the first one does."""
    return getattr(rank_zero_only, "rank", 0) == 0


def open_run(directory: Path, held: ExitStack) -> Run:
    """A new run directory of this process alone: the given one, or with a number behind it.

    Args:
        directory: where it is made.
        held: keeps others out of it.

    Raises:
        UserError: it cannot be made.
    """
    try:
        directory = claim(directory)
        held.enter_context(alone_in(directory))
        return Run(directory)
    except OSError as error:
        raise UserError(f"logs: {reason_of(error)}; name a folder with logs=PATH") from None


def build_model(config: Mapping[str, Any], spec: ImageSpec) -> GenerativeModel:
    """The configured model for images of a shape, with its optimisers tried once, so that mistakes show here.

    Raises:
        UserError: a value that a network or an optimiser cannot take.
    """
    with affordable("model", bytes_for_each=FLOAT * (2 + remembered(config["model"].get("optimizer", {})))):
        model: GenerativeModel = build(config["model"], "model", spec=spec)
    if config["conditional"] and not model.conditional:
        raise UserError("conditional=true: the model is built without it; its yaml needs conditional: ${conditional}")
    model.config = config["model"]
    try:
        model.configure_optimizers()
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"model.optimizer: {error}") from None
    return model


def remembered(optimizers: Mapping[str, Any]) -> int:
    """How many numbers the thriftiest of the configured optimisers keeps for each weight, found by a step of it."""
    counts = [2]
    for network, node in optimizers.items():
        weight = torch.nn.Parameter(torch.zeros(8, 8))  # a matrix: Muon keeps less of it than of a bias
        weight.grad = torch.zeros(8, 8)
        with contextlib.suppress(UserError, ValueError, TypeError, RuntimeError):  # said when the model has it
            optimizer = build(node, f"model.optimizer.{network}", params=[weight])
            optimizer.step()
            state = optimizer.state[weight].values()
            counts.append(sum(torch.is_tensor(kept) and kept.shape == weight.shape for kept in state))
    return min(counts)


def build_trainer(config: Mapping[str, Any]) -> Trainer:
    """Lightning's trainer without callbacks and loggers, which need a run directory.

    Raises:
        UserError: the machine has not what is asked for, or several processes without a strategy.
    """
    node = dict(config["trainer"])
    node["devices"], node["num_nodes"] = agreed_devices(node.get("devices", 1), node.get("num_nodes"))
    plugins: list[Any] = [AtomicCheckpointIO()]
    plugins += [SyncBatchNorms()] if node.get("sync_batchnorm") else []
    plugins += [LightningEnvironment()] if launch() is None else []  # also inside a job of Slurm, without its srun
    try:
        trainer: Trainer = build(
            node,
            "trainer",
            logger=False,
            plugins=plugins,
            default_root_dir=os.devnull,  # where Lightning looks for a Slurm checkpoint of its own
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            max_epochs=-1,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            check_val_every_n_epoch=None,  # Lightning's callbacks act when a measurement is made, not by epochs
        )
    except MisconfigurationException as error:
        raise UserError(f"trainer: {str(error).splitlines()[0]} Choose trainer=cpu, or other devices.") from None
    # Lightning would end SIGTERM with exit code 0 and requeue a Slurm job at SIGUSR1: signals belong to Interruption.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    if trainer.world_size > 1 and node.get("strategy") is None:
        raise UserError(f"trainer.devices={node['devices']}: for several processes choose trainer=ddp")
    return trainer


def describe(
    config: Mapping[str, Any], name: str, data: ImageDataModule, model: GenerativeModel, trainer: Trainer
) -> dict[str, Any]:
    """What the summary says of a run before it begins."""
    parameters = {name: count_parameters(module) for name, module in model.networks.items()}
    return {
        "name": name,
        "model": config["model"]["_target_"],
        "likelihood": model.likelihood,
        "leaf": model.leaf,
        "data": data.name,
        "split": data.description,
        "splits": data.splits,
        "spec": data.spec.as_dict(),
        "seed": config["seed"],
        "batch_size": data.batch_size,
        "parameters": {**parameters, "total": sum(parameters.values())},
        "device": device_name(trainer.strategy.root_device),
        **batch_norm_of(model, trainer),
        **environment(),
    }


@contextlib.contextmanager
def begun(run: Run, model: GenerativeModel, new: bool) -> Iterator[None]:
    """Of a run that ends before its first update, because it cannot be done as configured, nothing is left.

    Args:
        run: its directory.
        model: counts updates.
        new: the directory is this run's own, and not that of an earlier one.

    Raises:
        UserError: it cannot be done.
    """
    try:
        yield
    except (UserError, ValueError, RuntimeError, MemoryError) as error:
        if model.state.updates:
            error.run_began = True  # type: ignore[union-attr]
            raise
        reason = not_possible(error)
        if reason is None:
            raise
        if new and run.write:
            shutil.rmtree(run.path, ignore_errors=True)
            for folder in (run.path.parent, run.path.parent.parent):
                with contextlib.suppress(OSError):  # other runs lie there
                    folder.rmdir()
        raise UserError(reason) from error


def not_possible(error: Exception) -> str | None:
    """Why a run cannot be done as configured, if that is what an error of its first steps means."""
    if "Expected more than 1 value per channel" in str(error):  # of one image, where a map has shrunk to a point
        return "data.batch_size: too small for batch normalisation, which sees one value; give a larger one"
    if exhausted(error):
        return f"{enough(error)}; make the model, data.batch_size or what callbacks draw smaller"
    if type(error).__module__.startswith("torch._dynamo") or "torch.compile" in str(error):
        return f"compile: the networks cannot be translated ({first_line(error)}); compile=false trains without"
    return str(error) if isinstance(error, UserError) else None


@contextlib.contextmanager
def concluded(run: Run, interruption: Interruption) -> Iterator[None]:
    """Whatever ends a run, its summary says how; ``completed`` is the last thing that is written."""
    began = time.time()

    def conclusion(status: str, **entries: Any) -> None:
        run.update(status=status, **entries, seconds=round(run.summary.get("seconds", 0) + time.time() - began, 1))

    try:
        yield
        if interruption.requested is not None and run.write:  # of several processes the first one's exit code counts
            raise Interrupted(interruption.requested)
    except Interrupted as error:
        conclusion("interrupted", error=str(error))
        if run.write:
            there = f"stopped with checkpoint {run.last}; the same command with resume=auto continues"
            words = there if run.last.exists() else "stopped before the first checkpoint; the same command starts anew"
            print(words, file=sys.stderr)
        raise
    except UserError as error:  # of a dashboard, say: nothing was trained
        conclusion("interrupted" if run.last.exists() else "failed", error=str(error))
        run.withdraw()
        raise
    except BaseException as error:
        conclusion("failed", error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
        raise
    conclusion("completed")


@contextlib.contextmanager
def connected(
    trainer: Trainer, run: Run, config: Mapping[str, Any], settings: Settings, name: str, group: str | None
) -> Iterator[None]:
    """Inside, rows go to metrics.csv and the dashboards; afterwards these are closed, with the run's fate."""
    table = CSVLogger(run.metrics)
    dashboards: list[Dashboard] = []
    failed = True
    try:
        for key, node in config["logger"].items():
            if node is not None and run.write:
                given = {"run": run, "name": name, "config": config, "tags": settings.tags, "group": group}
                dashboards.append(Dashboard(key, partial(build_with, node, f"logger.{key}", **given)))
        trainer.loggers = [table, *dashboards] if run.write else []
        yield
        failed = False
    finally:
        for dashboard in dashboards:
            dashboard.close(failed)
        if run.write and run.metrics.exists():
            with run.beside("curves.png"):
                seed = "" if " seed=" in name else f", seed {settings.seed}"
                draw_curves(run.metrics, run.path / "curves.png", f"{name}{seed}")


def build_with(node: Mapping[str, Any], key: str, **available: Any) -> Any:
    """Build a node with those of the available arguments that its signature asks for and it does not give itself."""
    wanted = inspect.signature(target(node["_target_"], key)).parameters
    return build(node, key, **{name: value for name, value in available.items() if name in wanted and name not in node})


def in_order(chosen: list[Callback], framework: list[Callback]) -> list[Callback]:
    """The callbacks in the order in which they act on a batch: checkpoints last, after whatever may stop the run."""
    last = [c for c in chosen if isinstance(c, Checkpoints)]
    return [c for c in chosen if c not in last] + framework + last


def announce(text: str) -> None:
    """Say something that must not be overlooked."""
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    # No markup: it may quote the name of somebody's folder.
    Console(stderr=True).print(Panel(Text(printable(text)), title="note", border_style="yellow"))


def announce_start(run: Run, data: ImageDataModule, checkpoint_path: Path | None) -> None:
    """Say what begins, and where it will lie."""
    summary = run.summary
    for notice in summary["notices"]:
        announce(notice)
    print(printable(f"{summary['name']}: {data.description}"))
    print(f"{data.spec}; {summary['parameters']['total']:,} parameters; {summary['device']}")
    names = [data.spec.class_name(k) for k in sorted(set(range(data.spec.classes)).difference(data.spec.trained))]
    if names:
        told = printable(", ".join(names[:10]) + ", ..." * (len(names) > 10))
        print(f"note: no training images of {len(names):,} of the classes, which are never drawn or counted: {told}")
    print(f"{'continues' if checkpoint_path else 'writes to'} {run.path}", flush=True)


def conclude(
    run: Run, trainer: Trainer, model: GenerativeModel, limits: Limits, objective: str | list[str] | None
) -> None:
    """The final numbers."""
    log = find(trainer, TrainingLog)
    seconds = model.state.seconds if log is None else log.training_seconds
    entries: dict[str, Any] = {
        "images_seen": model.state.images,
        "updates": model.state.updates,
        "stopped_by": limits.reached(model),
        "training_seconds": round(seconds, 2),
        "training_cpu_seconds": round(model.state.cpu_seconds, 2),
        "images_per_second": round(model.state.images / seconds, 1) if seconds else None,
        "peak_memory_mib": round(peak_memory_mib(trainer.strategy.root_device), 1),
        "precision": trainer.precision,
        "device_count": trainer.world_size,
    }
    measured = run.summary.get("metrics", {})
    headlines = [c.headline(model) for c in trainer.callbacks if isinstance(c, Measuring)]  # type: ignore[attr-defined]
    entries["unmeasured"] = [name for name in headlines if name is not None and name not in measured]
    if log is not None:
        entries["train"] = log.latest
    if objective is not None and run.metrics.exists():
        last = read_table(run.metrics).last
        entries["objective"] = {name: last[name] for name in objectives_of(objective) if name in last}
    run.update(**entries)
