"""A W&B workspace and a report that fit every model, because every run has the same keys.

What is drawn stands in :data:`CHARTS` and :data:`COLUMNS`. wandb-workspaces, which makes W&B's objects of it, is an
optional package; only :func:`sign_in` and :func:`save` need a network.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from imago.errors import UserError

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import Report
    from wandb_workspaces.workspaces import Workspace

IMAGES, SECONDS = "images_seen", "time/training_seconds"
# Whatever the features: fid and kid are Inception's, others say theirs behind the name.
_QUALITY = {
    "Fréchet distance": "val/(fid|fd_.+)",
    "Kernel distance": "val/(kid|kd_.+)",
    "Sliced Wasserstein distance": "val/mind(_.+)?",
    "Precision and recall": "val/(precision|recall)(_.+)?",
    "Density and coverage": "val/(density|coverage)(_.+)?",
    "Clipped density and coverage": "val/clipped_(density|coverage)(_.+)?",
    "Inception score": "val/inception_score(_.+)?",
    "Authenticity and copies": "val/(authenticity(_.+)?|copies)",
    "Width of edges": "val/edge_width",
}
MEDIA = ("samples", "reconstructions")
# What a run's table shows beside its name, all of the run's summary.
COLUMNS = (
    "likelihood", "val/bpd", "val/nats", "val/fid", "val/fd_classifier", "parameters/total", IMAGES, SECONDS,
    "seconds_per_sample", "nfe", "time/peak_memory_mib",
)  # fmt: skip
_REMEDY = "wandb login, or set WANDB_API_KEY; out=FILE.json writes the specification without an account"


@dataclass(frozen=True)
class Chart:
    """Curves of one or several keys in one panel.

    Args:
        title: for people.
        keys: a regular expression that the whole of a key must match.
        x: the key along which they are drawn.
        log: whether the values' axis is logarithmic.
    """

    title: str
    keys: str
    x: str = IMAGES
    log: bool = False


def _over_both(title: str, keys: str) -> list[Chart]:
    return [Chart(f"{title}, over images", keys), Chart(f"{title}, over training seconds", keys, SECONDS)]


CHARTS: dict[str, list[Chart]] = {
    "Likelihood": [
        *_over_both("Bits per dimension", "val/bpd"),
        *_over_both("Nats per image", "val/nats"),
        Chart("Parts of the bound, nats", "val/elbo/.+(?<!_bpd)"),
        Chart("Parts of the bound, bits per dimension", "val/elbo/.+_bpd"),
    ],
    "Quality of samples": [chart for title, keys in _QUALITY.items() for chart in _over_both(title, keys)],
    "Points of known density": [
        *_over_both("KL divergence from the data, nats", "val/kl"),
        Chart("KL divergence from the data, of histograms", "val/kl_histogram"),
        Chart("Modes that samples hit", "val/modes"),
        Chart("Share of samples where the data are", "val/high_quality"),
    ],
    "Training: models with a likelihood": [
        Chart("Bits per dimension", "train/bpd"),
        Chart("Nats per image", "train/nats"),
        Chart("Parts of the bound, nats", "train/elbo/.+"),
    ],
    "Training: GANs": [
        Chart("Losses", "train/loss/(discriminator|generator)"),
        Chart("D(x) and D(G(z))", "train/d_(x|g_z)"),
        Chart("Penalty", "train/loss/discriminator/penalty"),
    ],
    "Training: diffusion and autoencoder": [
        Chart("Loss", "train/loss", log=True),
        Chart("Squared error of the prediction", "train/squared_error", log=True),
        Chart("The bound's terms, bits per dimension", "train/bits", log=True),
        Chart("Reconstruction error", "train/reconstruction_error", log=True),
    ],
    "Training: gradients": [
        Chart("Norms of gradients", "train/gradient_norm/.+", log=True),
        Chart("Share of updates skipped", "train/skipped/.+"),
    ],
    "Speed and cost": [
        Chart("Images a second", "time/images_per_second"),
        Chart("Training seconds, by the clock and of the processor", "time/training_(cpu_)?seconds"),
        Chart("Peak memory, MiB", "time/peak_memory_mib"),
    ],
}


def build_workspace(entity: str, project: str, name: str) -> "Workspace":
    """A workspace of all charts, pictures and comparisons; its runs are grouped by name, which is model and data.

    Args:
        entity: the W&B team or user.
        project: the W&B project.
        name: of the view.

    Raises:
        UserError: wandb-workspaces is not installed.
    """
    ws, wr, expr = _packages()
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        auto_generate_panels=False,
        sections=[ws.Section(name=name, panels=panels, is_open=True) for name, panels in _sections(wr).items()],
        settings=ws.WorkspaceSettings(x_axis=IMAGES, max_runs=50),
        runset_settings=ws.RunsetSettings(
            groupby=[expr.Metric("Name")], pinned_columns=[f"summary:{key}" for key in COLUMNS]
        ),
    )


def build_report(entity: str, project: str, name: str) -> "Report":
    """The same as a report: each section over a table of the runs, grouped by name.

    Args:
        entity: the W&B team or user.
        project: the W&B project.
        name: the title.

    Raises:
        UserError: wandb-workspaces is not installed.
    """
    _, wr, _ = _packages()
    columns = [f"summary:{key}" for key in COLUMNS]
    blocks: list[Any] = [wr.TableOfContents()]
    for title, panels in _sections(wr).items():
        runs = wr.Runset(
            name="by model and data", groupby=["Name"], visible_columns=columns, column_order=columns
        )  # of the report's project, which needs no look-up of its number
        for k, panel in enumerate(panels):
            panel.layout = wr.Layout(x=k % 2 * 12, y=k // 2 * 8, w=12, h=8)
        blocks += [wr.H1(title), wr.PanelGrid(runsets=[runs], panels=panels)]
    return wr.Report(
        entity=entity, project=project, title=name, width="fluid", blocks=blocks,
        description="Exact likelihoods, bounds and estimates are told apart by the column `likelihood`; `protocol/...` "
        "in a run's summary says how each number came about.",
    )  # fmt: skip


def sign_in(entity: str | None) -> str:
    """The team or user to save for: the one that is given, or the one that the configured API key belongs to.

    Raises:
        UserError: W&B is switched off, no key is configured, or W&B does not know it.
    """
    import wandb
    from wandb.errors import Error

    mode = wandb.setup().settings.mode
    if mode in ("offline", "disabled"):
        raise UserError(f"WANDB_MODE={mode}: a dashboard lies at W&B; unset it, or give out=FILE.json")
    try:
        if wandb.login(prompt=False):
            return entity or wandb.Api().default_entity or ""
    except (Error, ValueError, OSError) as error:
        raise UserError(f"W&B: {_line(error)}; {_REMEDY}") from None
    raise UserError(f"W&B: no API key is configured; {_REMEDY}")


def save(thing: "Workspace | Report") -> str:
    """Save a workspace or a report at W&B; its address.

    Raises:
        UserError: W&B refuses.
    """
    from wandb.errors import Error

    try:
        thing.save()
    except (Error, ValueError, OSError, RuntimeError) as error:
        names = f"entity={thing.entity} project={thing.project}"
        raise UserError(f"{names}: {_line(error)}; check both names and the network, or give out=FILE.json") from None
    return thing.url


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def specification(thing: "Workspace | Report") -> dict[str, Any]:
    """What :func:`save` would send, as plain types."""
    return thing._to_model().model_dump(by_alias=True, exclude_none=True, mode="json")


def _sections(wr: ModuleType) -> dict[str, Sequence[Any]]:
    """Panels by the title of their section."""
    found: dict[str, Sequence[Any]] = {
        title: [
            wr.LinePlot(title=chart.title, x=chart.x, metric_regex=f"^{chart.keys}$", log_y=chart.log or None)
            for chart in charts
        ]
        for title, charts in CHARTS.items()
    }
    found["Pictures"] = [wr.MediaBrowser(title=key, media_keys=[key], num_columns=2) for key in MEDIA]
    cost = wr.SummaryMetric("seconds_per_sample")
    quality = [
        wr.ScatterPlot(
            title=f"{key} against seconds per sample", x=cost, y=wr.SummaryMetric(key), log_x=True, log_y=True
        )
        for key in ("val/fid", "val/fd_classifier")
    ]
    found["Runs side by side"] = [*quality, wr.RunComparer(diff_only="split")]
    return found


def _packages() -> tuple[ModuleType, ModuleType, ModuleType]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its validators are of pydantic's last version
        try:
            import wandb_workspaces.reports.v2 as wr
            import wandb_workspaces.workspaces as ws
            from wandb_workspaces import expr
        except ModuleNotFoundError as error:
            raise UserError(f"a dashboard needs wandb-workspaces ({error}): pip install wandb-workspaces") from None
    return ws, wr, expr
