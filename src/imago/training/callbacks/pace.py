"""What measuring and drawing may cost: a share of the time that training takes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar

from lightning import Trainer
from pydantic import Field

from imago.models.base import GenerativeModel
from imago.processes import in_all, of_first
from imago.training.callbacks.common import Periodic, find
from imago.training.callbacks.limits import Limits

Share = Annotated[float, Field(gt=0)]

CREDIT = 5.0  # seconds that each callback may take in a run however short
CHEAP = 3.0  # seconds that measuring the untrained model may take
FEWEST_ACTIONS = 5  # that a callback's time must be enough for: amounts are chosen so


class Paced(Periodic):
    """A callback whose work beside training has a price: it is done less often, or of fewer images, where that is high.

    All of them together may take ``share`` of the seconds of training, this one its :attr:`portion` of it, and a few
    seconds that even a short run has. An action that would cost more waits until there is room. How many images it is
    of is chosen once, at the first one: so that the numbers of a run compare, and the run has room for some of them.

    Args:
        every: number of images between two actions.
        halvings: see :class:`~imago.training.callbacks.common.Periodic`.
        share: of training time, of all callbacks together; ``None`` sets no limit, so that all is done as configured.

    Attributes:
        portion: this callback's part of the share.
        spent: seconds so far.
        cost: seconds of the last action; 0 before the first.
        amount: how many images, or rows, an action is of; ``None`` until it is known.
    """

    portion: ClassVar[float]

    def __init__(self, every: int, halvings: int = 0, share: float | None = None) -> None:
        super().__init__(every, halvings)
        self.share = share
        self.spent = 0.0
        self.cost = 0.0
        self.amount: int | None = None
        self._wait_until = 0  # images

    def room(self, seconds: float) -> float:
        """Seconds that an action may take after so many seconds of training."""
        assert self.share is not None
        return CREDIT + self.portion * self.share * seconds - self.spent

    def ready(self, trainer: Trainer, model: GenerativeModel) -> bool:
        """Whether there is room for what is due; of several processes the first one's clock decides."""
        if self.share is None:
            return True
        images = model.state.images
        if images < self._wait_until:
            return False
        ready = self.cost <= self.room(model.state.seconds)
        if trainer.world_size > 1:
            ready = trainer.strategy.broadcast(ready)
        if not ready:
            self._wait_until = images + max(1, self.every >> 10)
        return ready

    def choose(self, trainer: Trainer, model: GenerativeModel, amounts: list[int], each: Callable[[], float]) -> int:
        """The amount of an action: the largest that leaves room for several in this run; 0 where none does.

        All processes choose together, and the first one decides.

        Args:
            trainer: whose limits say how long the run will be.
            model: in training.
            amounts: to choose from, the largest first.
            each: measures the seconds that one image takes.
        """
        if self.share is None:
            return amounts[0]
        if not self.amount:
            limits = find(trainer, Limits)
            seconds = model.state.seconds if limits is None else limits.expected_seconds(model)
            room = (CREDIT + self.portion * self.share * seconds) / FEWEST_ACTIONS
            price = each()
            self.amount = of_first(next((amount for amount in amounts if amount * price <= room), 0))
        return self.amount

    def _act(self, trainer: Trainer, model: GenerativeModel) -> None:
        with self.charged():
            super()._act(trainer, model)

    @contextmanager
    def charged(self) -> Iterator[None]:
        """Count the seconds inside as an action's."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.cost = time.perf_counter() - began
            self.spent += self.cost

    def state_dict(self) -> dict[str, Any]:
        """When it acted last, what it has cost, and how much it is of."""
        return {**super().state_dict(), "spent": self.spent, "cost": self.cost, "amount": self.amount}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`; a checkpoint of version 0.1 has only when it acted."""
        super().load_state_dict(state_dict)
        self.spent, self.cost = state_dict.get("spent", 0.0), state_dict.get("cost", 0.0)
        self.amount = state_dict.get("amount")


def amounts_up_to(whole: int, least: int) -> list[int]:
    """``whole``, and the round numbers below it: 10,000, 5,000, 2,000, 1,000, …, ``least``."""
    round_numbers = [k * 10**e for e in range(9, -1, -1) for k in (5, 2, 1)]
    return [whole, *(n for n in round_numbers if least <= n < whole)]


def seconds_of(work: Callable[[int], object], most: int) -> float:
    """Seconds that ``work`` takes for an image, from ever more images at a time, until it takes a second.

    All processes of a group work; the first one's clock counts.
    """
    images, enough = 1, 5.0  # the first time is of a cold start
    while True:
        seconds = in_all(lambda n=images: _seconds(work, n))[0]  # type: ignore[misc]
        if seconds > enough or images == most:
            return seconds / images
        images, enough = min(4 * images, most), 1.0


def _seconds(work: Callable[[int], object], images: int) -> float:
    began = time.perf_counter()
    work(images)
    return time.perf_counter() - began
