"""Ending a hopeless trial of a search early."""

from lightning import Callback, LightningModule, Trainer

from imago.models.base import GenerativeModel
from imago.runs import Run
from imago.search import Reporter
from imago.training.callbacks.common import find, occasions
from imago.training.callbacks.limits import Limits
from imago.training.callbacks.measuring import Measuring


class Pruning(Callback):
    """Tells the search what a trial's objective is whenever it was measured, and stops where the search gives it up.

    Trials are compared after equally many occasions to measure, so their batches may differ in size.

    Args:
        objective: the number, such as ``val/bpd``.
        reporter: to the search.
        run: the run directory.
    """

    def __init__(self, objective: str, reporter: Reporter, run: Run) -> None:
        self.objective, self.reporter, self.run = objective, reporter, run
        self.stopped = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report a new measurement."""
        assert isinstance(pl_module, GenerativeModel)
        result, images = self.run.summary.get("metrics", {}).get(self.objective, {}), pl_module.state.images
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        own = next((c for c in callbacks if isinstance(c, Measuring) and self.objective in c.latest), None)
        if own is None or result.get("images_seen") != images:
            return
        self.reporter.report(occasions(images, own.every, own.halvings), result["value"])
        limits = find(trainer, Limits)
        if (limits is None or limits.reached(pl_module) is None) and self.reporter.hopeless:
            self.stopped = True
            reason = f"{self.reporter.title}: {self.objective}={result['value']:.4g} after {images:,} images"
            self.reporter.give_up(reason)
            self.run.update(pruned=reason)
            print(f"pruned by {reason}", flush=True)
            trainer.should_stop = True
