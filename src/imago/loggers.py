"""The loggers beside metrics.csv, chosen by the ``logger`` group: none can break a run or hold it up for long."""

import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, get_args

from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger
from pydantic import Field

from imago import config as configuration
from imago.config import WandbName
from imago.errors import UserError
from imago.runs import Run, note

SECONDS = "time/training_seconds"
Mode = Literal["online", "offline", "disabled"]
# Seconds: for W&B to answer when a run begins, to take the rest when it ends, and for any dashboard to do anything.
INIT, FINISH, PATIENCE = 30.0, 60.0, 90.0
T = TypeVar("T")
# W&B servers that did not answer in time; the other runs of a sweep do not wait for them again.
silent_hosts: set[str] = set()


class Dashboard(Logger):
    """A logger that may fail: what it raises is said once and ends nothing; one that hangs gets nothing more.

    Args:
        title: for messages.
        open_logger: makes the logger.
        patience: seconds that a call may take; ``None`` for ``PATIENCE``.

    Raises:
        UserError: from ``open_logger``: what was asked for cannot be had, and nothing was trained.
    """

    name = version = ""

    def __init__(self, title: str, open_logger: Callable[[], Logger], patience: float | None = None) -> None:
        super().__init__()
        self.name = title
        self.patience = patience or PATIENCE
        self.logger: Logger | None = None
        self._said: set[str] = set()
        try:
            self.logger = in_time(open_logger, self.patience)
        except UserError:
            raise
        except Exception as error:
            note(self._said, self.name, error)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The configuration was handed over at the start."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log a row."""
        self._ask("log_metrics", dict(metrics), step)

    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Log pictures, where there is a place for them."""
        self._ask("log_image", key, images, step, **kwargs)

    def finalize(self, status: str) -> None:
        """Training has ended; see :meth:`close`."""
        self._ask("finalize", status)

    def close(self, failed: bool) -> None:
        """Nothing more will come.

        Args:
            failed: the fate of the run.
        """
        self.finalize("failed" if failed else "success")
        self._ask("close", failed)
        if self._said:
            self._abandon()

    def _ask(self, method: str, *arguments: Any, **options: Any) -> None:
        call = getattr(self.logger, method, None)
        if call is None:
            return
        try:
            in_time(lambda: call(*arguments, **options), self.patience)
        except Exception as error:
            note(self._said, self.name, error)
            if isinstance(error, TimeoutError):
                self._abandon()

    def _abandon(self) -> None:
        logger, self.logger = self.logger, None
        abandon = getattr(logger, "abandon", None)
        if abandon is not None:
            with suppress(Exception):
                in_time(abandon, self.patience)


def in_time(action: Callable[[], T], seconds: float) -> T:
    """What an action gives, or what it raises; it runs in a thread of its own.

    Raises:
        TimeoutError: it takes longer, and is left to itself.
    """
    outcome: dict[str, Any] = {}

    def act() -> None:
        try:
            outcome["result"] = action()
        except SystemExit as error:  # wandb's way of saying that its service ended badly
            outcome["error"] = RuntimeError(f"ended with {error.code}")
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=act, daemon=True)  # does not hold up the end of the process
    thread.start()
    thread.join(seconds)
    if "error" in outcome:
        raise outcome["error"]
    if "result" not in outcome:
        raise TimeoutError(f"no answer within {seconds:.0f} seconds")
    return cast(T, outcome["result"])


def wandb_mode(mode: Literal["auto"] | Mode) -> Mode:
    """``auto`` becomes online where an API key is configured, else offline; nothing ever asks for one.

    Raises:
        UserError: online without a key, or with one that is none.
    """
    if mode == "auto" and os.environ.get("WANDB_MODE") in get_args(Mode):
        mode = cast(Mode, os.environ["WANDB_MODE"])
    if mode in ("offline", "disabled"):
        return cast(Mode, mode)
    import wandb

    try:
        configured = wandb.login(prompt=False, verify=False)
    except wandb.errors.Error as error:
        raise refused(str(error)) from None
    if not configured and mode == "online":
        raise refused("no API key is configured")
    return "online" if configured else "offline"


def wandb(
    run: Run,
    name: str,
    config: Mapping[str, Any],
    tags: list[str],
    group: str | None,
    project: WandbName = "imago",
    entity: WandbName | None = None,
    mode: Literal["auto", "online", "offline", "disabled"] = "auto",
    artifacts: bool = False,
    code: bool = False,
    tables: bool = False,
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
        mode: ``auto`` is online where a key is configured and the server answers, else offline.
        artifacts: at the end the checkpoints become an artifact.
        code: the Python files of imago, and of plugins, are kept as they are.
        tables: at the end the grids of samples and reconstructions become a table.

    Raises:
        UserError: the server refuses the key, the project or the entity, or does not answer where online was asked for.
    """
    import wandb as weights_and_biases
    from wandb.errors import CommError, UsageError

    mode_now = wandb_mode(mode)
    insists = "online" in (mode, os.environ.get("WANDB_MODE"))
    bounds: dict[str, Any] = {"init_timeout": INIT, "finish_timeout": FINISH, "finish_timeout_raises": True}
    chosen = {key: value for key, value in bounds.items() if f"WANDB_{key.upper()}" not in os.environ}

    def begin(mode: Mode) -> Any:
        # A continued run keeps its id. Online it goes on in the same W&B run; offline W&B begins a file of its own.
        known = run.summary.get("wandb_id")
        settings = weights_and_biases.Settings(console="off", silent=True, **chosen)
        resume: Any = "allow" if known and mode == "online" else None
        return weights_and_biases.init(
            project=project, entity=entity, name=name, group=group, tags=tags, config=dict(config), dir=str(run.path),
            mode=mode, id=known, resume=resume, settings=settings, reinit="finish_previous",
        )  # fmt: skip

    host = weights_and_biases.setup().settings.base_url
    if mode_now == "online" and not insists and host in silent_hosts:
        mode_now = "offline"
        print(f"note: wandb: {host} did not answer before; this run is offline", file=sys.stderr, flush=True)
    there = set(run.path.glob("wandb/*"))
    try:
        try:
            experiment = in_time(lambda: begin(mode_now), INIT + 30)
        except CommError as error:
            for left in set(run.path.glob("wandb/*")) - there:
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
            told = str(error).splitlines()[0]
            if mode_now != "online" or insists or not told.startswith("Timed out"):  # the server has answered
                raise refused(told) from None
            silent_hosts.add(host)
            mode_now = "offline"
            print(f"note: wandb: {told}; this run is offline", file=sys.stderr, flush=True)
            experiment = in_time(lambda: begin(mode_now), INIT + 30)
        except (UsageError, ValueError) as error:
            raise refused(str(error)) from None
    except BaseException:
        forget_wandb()
        raise
    experiment.define_metric("images_seen")
    experiment.define_metric("*", step_metric="images_seen")
    run.update(wandb_id=experiment.id, wandb_mode=mode_now)
    if mode_now == "online":
        print(f"W&B: {experiment.url}", flush=True)
    if code:
        for package in ("imago", *(prefix.removesuffix(".") for prefix in configuration.PLUGINS)):
            for folder in getattr(import_module(package), "__path__", ()):
                experiment.log_code(folder, name=f"source-{package}", include_fn=lambda path: path.endswith(".py"))
    return WandbRun(run, experiment, artifacts, tables)


def refused(why: str) -> UserError:
    """What to say where W&B will not have what was asked for."""
    return UserError(f"logger.wandb: {' '.join(why.split())[:300]}; mend it, or choose logger.wandb.mode=offline")


def forget_wandb() -> None:
    """End the W&B service of this process, whatever became of it: the next run starts one, and nobody waits for this.

    It is killed first, because it may hang, and what waits for it hangs with it.
    """
    from wandb.sdk import wandb_setup

    with suppress(Exception):
        process = wandb_setup.singleton()._connection._proc._process  # type: ignore[union-attr]
        process.kill()
        process.wait(10)
    with suppress(Exception):
        in_time(wandb_setup.teardown, 10)


class WandbRun(WandbLogger):
    """Lightning's logger, with what one must know of a run's numbers in the W&B run's own summary.

    There are ``likelihood`` (its kind), ``data``, ``parameters/<player>`` and ``parameters/total``; of a search
    ``objective/<number>``, what the run reached; for each measured number ``protocol/<number>``, one line; where
    samples were measured, ``seconds_per_sample`` and ``nfe``.

    Args:
        run: the run directory, whose summary knows all this.
        experiment: the W&B run.
        artifacts, tables: see :func:`wandb`.
    """

    def __init__(self, run: Run, experiment: Any, artifacts: bool = False, tables: bool = False) -> None:
        super().__init__(experiment=experiment)
        self.run, self.artifacts, self.tables = run, artifacts, tables
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

    def close(self, failed: bool) -> None:
        """End the W&B run with the fate of ours.

        Raises:
            TimeoutError: not everything was uploaded.
        """
        self._hand_over()
        try:
            self.experiment.finish(exit_code=int(failed))
        except TimeoutError:
            there = self.experiment.settings.sync_dir
            raise TimeoutError(f"not everything was uploaded; `wandb sync {there}` does the rest") from None

    def abandon(self) -> None:
        """Something went wrong: keep it from the next run."""
        forget_wandb()

    def _hand_over(self) -> None:
        """Checkpoints and grids, where they were asked for."""
        from wandb import Artifact, Image, Table

        if self.tables:
            table = Table(columns=["kind", "images_seen", "grid"])
            for path in sorted(self.run.samples.glob("*-*.png")):
                kind, _, seen = path.stem.partition("-")
                table.add_data(kind, int(seen) if seen.isdigit() else None, Image(str(path)))
            self.experiment.log({"grids": table})
        files = [path for path in (self.run.last, self.run.best) if path.exists()]
        if self.artifacts and files:
            artifact = Artifact(f"model-{self.experiment.id}", type="model", metadata={"run": self.run.summary["name"]})
            for path in files:
                artifact.add_file(str(path))
            self.experiment.log_artifact(artifact)

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
    names = ", ".join(summary.get("spec", {}).get("class_names", ()))
    facts |= {"classes": names.encode(errors="replace").decode()} if names else {}
    facts |= {f"parameters/{player}": count for player, count in summary.get("parameters", {}).items()}
    facts |= {f"objective/{name}": value for name, value in summary.get("objective", {}).items()}
    for name, result in summary.get("metrics", {}).items():
        protocol = result["protocol"]
        facts[f"protocol/{name}"] = "; ".join(f"{key.replace('_', ' ')} {told}" for key, told in protocol.items())
        facts |= {key: protocol[key] for key in ("seconds_per_sample", "nfe") if key in protocol}
    return facts


def tensorboard(run: Run, name: str, group: str | None) -> TensorBoardLogger:
    """Event files in the run directory's ``tensorboard/``; a sweep's in a folder there that has the run's name.

    Raises:
        UserError: tensorboard is not installed.
    """
    known = [path.name for path in (run.path / "tensorboard").glob("*/")]  # of a run that continues
    version = known[0] if known else "" if group is None else re.sub(r"[^\w.=, -]", "_", name)
    with installed("tensorboard"):
        return TensorBoardLogger(save_dir=run.path, name="tensorboard", version=version)


def mlflow(
    run: Run,
    name: str,
    config: Mapping[str, Any],
    tags: list[str],
    group: str | None,
    experiment: Annotated[str, Field(min_length=1)] = "imago",
    tracking_uri: str | None = None,
) -> MLFlowLogger:
    """An MLflow run, with the configuration as its parameters; a run that continues goes on in it.

    Args:
        run: the run directory.
        name: the run's name.
        config: the resolved configuration.
        tags: labels, each a tag without a value.
        group: the sweep that the run belongs to, the tag ``group``.
        experiment: the MLflow experiment.
        tracking_uri: of the store; ``None`` for ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` in the folder of the runs.

    Raises:
        UserError: mlflow is not installed.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(config['logs'], 'mlflow.db')}"
    labels = {**dict.fromkeys(tags, ""), **({} if group is None else {"group": group})}
    with installed("mlflow"):
        known = run.summary.get("mlflow_id")
        logger = MLFlowLogger(experiment, run_name=name, tracking_uri=uri, tags=labels, run_id=known)
        run.update(mlflow_id=logger.run_id)
    if known is None:
        logger.log_hyperparams(dict(config))
    return logger


def trackio(
    run: Run, name: str, config: Mapping[str, Any], group: str | None, project: WandbName = "imago"
) -> "TrackioRun":
    """A Trackio run, kept where ``TRACKIO_DIR`` says; a run that continues goes on in the one of its name.

    Args:
        run: the run directory.
        name: the run's name; its place in time is added, because Trackio tells runs apart by their names.
        config: the resolved configuration.
        group: the sweep that the run belongs to.
        project: the Trackio project.

    Raises:
        UserError: trackio is not installed.
    """
    with installed("trackio"):
        import trackio as package

        own = f"{name} {run.path.name}"
        begun = package.init(project=project, name=own, group=group, config=dict(config), resume="allow", embed=False)
    return TrackioRun(begun, package.Image)


class TrackioRun(Logger):
    """Rows and pictures for Trackio, over images seen.

    Args:
        begun: Trackio's run; its module's own functions know it in one thread alone.
        picture: Trackio's type of pictures.
    """

    name, version = "trackio", ""

    def __init__(self, begun: Any, picture: Callable[..., Any]) -> None:
        super().__init__()
        self.begun, self.picture = begun, picture

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The configuration was handed over at the start."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log a row."""
        self.begun.log(dict(metrics), step=step)

    def log_image(self, key: str, images: list[Any], step: int | None = None, caption: Any = (None,)) -> None:
        """Log pictures."""
        for image, told in zip(images, caption, strict=True):
            self.begun.log({key: self.picture(image, caption=told)}, step=step)

    def close(self, failed: bool) -> None:
        """End the run."""
        self.begun.finish()


@contextmanager
def installed(package: str) -> Iterator[None]:
    """Inside, what is missing is said with the command that installs it."""
    try:
        yield
    except ModuleNotFoundError:
        raise UserError(f"logger={package}: not installed; pip install {package}, or use logger=csv") from None
