"""The base of all metrics that compare feature vectors of real images with those of generated ones."""

from abc import abstractmethod
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from imago.models.base import evaluating


class FeatureMetric(Metric):
    """A metric with a real and a generated side, used like torchmetrics' ``FrechetInceptionDistance``.

    Several of them share one pass through the network in ``torchmetrics.wrappers.FeatureShare``.

    Args:
        network: images to feature vectors (n, d), called in evaluation mode and without gradient, such as a
            :class:`~imago.evaluation.FeatureExtractor`; ``None``: :meth:`update` is given feature vectors.
        reset_real_features: whether :meth:`reset` forgets the real images too.
        options: of ``torchmetrics.Metric``.
    """

    is_differentiable = False
    feature_network = "network"  # as FeatureShare asks for it

    def __init__(self, network: nn.Module | None = None, *, reset_real_features: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.network = network
        self.reset_real_features = reset_real_features

    @property
    def full_state_update(self) -> bool:  # type: ignore[override]
        """Whether ``forward`` sees what came before: real images that stay would else be counted twice."""
        return not self.reset_real_features

    @abstractmethod
    def update(self, images: Tensor, real: bool) -> None:
        """Add a batch.

        Args:
            images: as the network takes them; without a network feature vectors (n, d).
            real: whether they are real images.
        """

    def features(self, images: Tensor) -> Float[Tensor, "n d"]:
        """Return the feature vectors of what :meth:`update` is given."""
        with torch.no_grad(), nullcontext() if self.network is None else evaluating(self.network):
            vectors = images if self.network is None else self.network(images)
        if vectors.ndim != 2 or not vectors.is_floating_point():
            raise ValueError(f"features are {vectors.dtype} {tuple(vectors.shape)}: expected floats (n, d)")
        return vectors.detach()

    def reset(self) -> None:
        """Forget all images, or all but the real ones."""
        kept = {} if self.reset_real_features else {name: getattr(self, name) for name in self._defaults}
        kept = {name: state for name, state in kept.items() if name.startswith("real")}
        kept = {name: list(state) if isinstance(state, list) else state for name, state in kept.items()}
        super().reset()
        for name, state in kept.items():
            setattr(self, name, state)


class SetMetric(FeatureMetric):
    """A metric that keeps all feature vectors of both sides."""

    real_features: list[Tensor]
    fake_features: list[Tensor]

    def __init__(self, network: nn.Module | None = None, **options: Any) -> None:
        super().__init__(network, **options)
        for side in ("real", "fake"):
            self.add_state(f"{side}_features", [], dist_reduce_fx="cat")

    def update(self, images: Tensor, real: bool) -> None:
        """See :meth:`FeatureMetric.update`."""
        (self.real_features if real else self.fake_features).append(self.features(images))

    def both(self) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]:
        """Return the vectors of the generated and of the real images."""
        states = (self.fake_features, self.real_features)
        fake, real = (dim_zero_cat(state) if len(state) else torch.empty(0, 0) for state in states)
        if not (len(fake) and len(real)):
            raise ValueError(f"{type(self).__name__}: real and generated images are needed")
        return fake, real
