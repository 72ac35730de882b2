"""Optimisers beside those of :mod:`torch.optim`: Muon, for networks that have more than matrices.

Adam moves every weight at one speed, whatever its neighbours do. Muon (Jordan et al. 2024) sees that weights are
matrices: it replaces the singular values of a matrix's averaged gradient M = U S Vᵀ by ones,

    M_t = μ M_{t−1} + G_t,    W_t = W_{t−1} − η 0.2 √max(rows, columns) · orth(G_t + μ M_t),    orth(M) ≈ U Vᵀ,   (1)

so that a step moves the outputs of a layer equally in all directions, also those that few gradients point in. orth
takes no decomposition: an odd polynomial x ← a x + (b x xᵀ + c (x xᵀ)²) x moves all singular values towards one, and
five rounds bring those of more than a hundredth of the matrix's norm into 0.68..1.14. The factor 0.2 √max(rows,
columns) gives the steps the root mean square of Adam's (Liu et al. 2025, section 2.2), so that a learning rate serves
both.

That is about what a layer multiplies its inputs with. What it looks up or adds, as embeddings and biases, and what a
matrix is composed of stay with Adam.

A round costs three products of matrices and no image: little beside a convolution, which uses its weights at every
pixel, and much beside a fully connected layer in small batches.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; Liu et al. 2025, "Muon is scalable for
LLM training" (arXiv 2502.16982).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.optim.adam import adam

ROUNDS = 5
POLYNOMIAL = (3.4445, -4.7750, 2.0315)  # Jordan et al.: steepest at 0 among those that stay near 1
ADAM_RMS = 0.2  # of Adam's updates, in units of the learning rate (Liu et al. 2025)
SMALLEST = 8  # matrices with fewer rows or columns have too few directions
Share = Annotated[float, Field(ge=0, lt=1)]


def orthogonalized(matrices: Float[Tensor, "k rows columns"]) -> Float[Tensor, "k rows columns"]:
    """Nearly the nearest matrices with orthonormal rows, or columns where there are fewer: orth of equation 1."""
    a, b, c = POLYNOMIAL
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x if wide else x.mT


def weights_of(network: nn.Module) -> set[Tensor]:
    """What the layers of a network multiply with: what is called a weight there, but for embeddings, which look it up.

    No weights are factors of a matrix, states, positions and the like, as they have other names.
    """
    found: set[Tensor] = set()
    tables: set[Tensor] = set()
    for path, module in network.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            tables.update(module.parameters())
        for name, parameter in module.named_parameters(recurse=False):
            # What a weight is computed from, as under spectral norm, has names of its own in a module of that name.
            if "weight" in (path.rpartition(".")[2] if isinstance(module, ParametrizationList) else name):
                found.add(parameter)
    return found - tables


class Muon(torch.optim.Optimizer):
    """Muon for weights of layers that are matrices, Adam for all else.

    A kernel is the matrix of its first axis and all others: of a convolution (outputs, inputs · height · width). Adam's
    are biases, scales, embeddings, the triangular factors of Glow's convolutions, what has fewer than 8 rows or
    columns, as a last layer of one output or the recurrent kernels of a PixelRNN, whose first axis is its directions,
    and the weights of :mod:`imago.nets.masked`, which are vectors: all of MADE and FVBN.

    Args:
        params: tensors to train.
        lr: learning rate η, of both.
        momentum: μ of equation 1.
        betas: of Adam.
        eps: of Adam.
        network: whose tensors they are, which tells its layers' weights (:func:`weights_of`); models give it. ``None``
            takes all for weights.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: NonNegativeFloat = 0.001,
        momentum: Share = 0.95,
        betas: Annotated[Sequence[Share], Field(min_length=2, max_length=2)] = (0.9, 0.999),
        eps: NonNegativeFloat = 1e-8,
        network: nn.Module | None = None,
    ) -> None:
        weights = None if network is None else weights_of(network)
        kinds: dict[bool, list[Tensor]] = {True: [], False: []}
        for parameter in params:
            rows = len(parameter) if parameter.ndim >= 2 else 1
            large = min(rows, parameter.numel() // max(rows, 1)) >= SMALLEST
            kinds[large and (weights is None or parameter in weights)].append(parameter)
        groups = [{"params": of_kind, "matrices": kind} for kind, of_kind in kinds.items() if of_kind]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "betas": tuple(betas), "eps": eps, "matrices": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move all tensors that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                (self._muon if group["matrices"] else self._adam)(group, parameters)
        return loss

    def _muon(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """Equation 1, for all matrices of one shape together."""
        directions: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for parameter in parameters:
            state, gradient = self.state[parameter], parameter.grad
            assert gradient is not None
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            average = state["momentum"].mul_(group["momentum"]).add_(gradient)
            direction = gradient.add(average, alpha=group["momentum"]).flatten(1)
            directions.setdefault((direction.shape[0], direction.shape[1]), []).append((parameter, direction))
        for shape, members in directions.items():
            moves = orthogonalized(torch.stack([direction for _, direction in members]))
            length = group["lr"] * ADAM_RMS * math.sqrt(max(shape))
            for (parameter, _), move in zip(members, moves, strict=True):
                parameter.sub_(move.view(parameter.shape), alpha=length)

    def _adam(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        states = [self.state[parameter] for parameter in parameters]
        adam(
            parameters,
            [parameter.grad for parameter in parameters],  # type: ignore[misc]
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )
