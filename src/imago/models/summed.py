"""Bounds that are a sum of many terms, each of which asks the network: an estimate may visit a few of them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from imago.images import Batch
from imago.models.base import ExplicitModel

OFTEN = 10  # terms that Lightning's validation visits


class SummedBound(ExplicitModel, ABC):
    """A model whose bound is such a sum.

    Attributes:
        bound_steps: of the terms of the sum, how many an estimate of the bound visits, drawn for each image; ``None``
            for all. What is measured says which.
    """

    likelihood = "lower_bound"

    def __init__(self, *given: Any, **settings: Any) -> None:
        super().__init__(*given, **settings)
        self.bound_steps: int | None = None

    @property
    @abstractmethod
    def bound_terms(self) -> int:
        """How many terms an estimate for one image visits."""

    @contextmanager
    def visiting(self, bound_steps: int | None) -> Iterator[None]:
        """Estimate bounds from so many terms inside, afterwards as before."""
        before, self.bound_steps = self.bound_steps, bound_steps
        try:
            yield
        finally:
            self.bound_steps = before

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log ``val/nats`` and ``val/bpd`` from ten terms of the bound; ``test`` visits all (Lightning's hook)."""
        with self.visiting(self.bound_steps or OFTEN):
            super().validation_step(batch, batch_idx)
