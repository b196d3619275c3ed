"""What multi-point optimisation trains: an origin, d more vectors and one scale.

From them come d orthogonal directions of equal length. The points of the fitted slice are
``w(c) = origin + scale * sum_k c_k direction_k`` with whole numbers c. In the plane, direction 0 is
called right and direction 1 up.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from landscape_lib import runtime
from landscape_lib.weights import Weights, flatten, float64, weights_of

PARAMETRIZATIONS = ("paper", "code")
INITIALIZATIONS = ("xavier", "pytorch")


class Span(nn.Module):
    """The trained vectors, and the orthogonal directions they stand for.

    The two parametrisations differ in which vector is taken as it is, and in what it means:

    ``"paper"`` (MPO paper, eq. 2)
        up is the trained vector itself; right is the trained vector made orthogonal to up and given
        the length of up.
    ``"code"`` (the authors' program)
        right is the trained vector *minus the origin*, so that the gradient of right also moves the
        origin; up is made orthogonal to right and given its length.

    Further directions (d > 2) are made orthogonal to all before them, in the same way.

    Args:
        vectors: shape (1 + d, n): the initial origin, and the vectors behind right, up and so on.
        scale: the initial scale.
        parametrization: ``"paper"`` or ``"code"``.
    """

    def __init__(self, vectors: Tensor, scale: float, parametrization: str) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors.detach().clone())
        self.scale = nn.Parameter(vectors.new_tensor(scale))
        self.parametrization = parametrization

    def directions(self) -> Tensor:
        """Return the directions without the scale, in float64, shape (d, n)."""
        origin, *trained = float64(self.vectors)
        numbers = list(range(len(trained)))
        if self.parametrization == "code":
            trained[0] = trained[0] - origin
        else:
            numbers[:2] = numbers[:2][::-1]  # up is the first
        done: dict[int, Tensor] = {}
        for k in numbers:
            direction = trained[k]
            for other in done.values():
                direction = direction - (direction @ other) / (other @ other) * other
            if done:
                direction = direction * (done[numbers[0]].norm() / direction.norm())
            done[k] = direction
        return torch.stack([done[k] for k in range(len(trained))])

    def forward(self) -> Tensor:
        """Return the origin and the directions times the scale, shape (1 + d, n)."""
        directions = float64(self.scale) * self.directions()
        return torch.cat([self.vectors[:1], directions.to(self.vectors)])

    def extra_repr(self) -> str:
        """Name the parametrisation, which is part of the function."""
        return f"{tuple(self.vectors.shape)}, parametrization={self.parametrization!r}"


def initial_vectors(
    model: nn.Module, dimension: int, initialization: str, origin: Weights | None, seed: int
) -> Tensor:
    """Draw 1 + d independent weight vectors, the same on every device.

    Every module draws its parameters as PyTorch does (``reset_parameters``). For ``"xavier"`` all
    tensors of two dimensions and more are then drawn again by Glorot's uniform rule, and biases are
    set to 0; scales of normalisation layers stay.

    Args:
        model: it is copied.
        dimension: d.
        initialization: ``"xavier"`` (MPO paper, appendix A) or ``"pytorch"`` (the authors' code).
        origin: start from these weights in the place of the first draw.
        seed: of all draws.

    Returns:
        Shape (1 + d, n), on the model's device, in float32 or the wider type of the model.

    Raises:
        ValueError: two of the draws are equal, so they span no slice.
    """
    probe = copy.deepcopy(model).cpu()
    draws = []
    with runtime.isolated_random_state(seed), torch.no_grad():
        for _ in range(1 + dimension):
            for module in probe.modules():
                reset = getattr(module, "reset_parameters", None)
                if callable(reset):
                    reset()
            if initialization == "xavier":
                for name, parameter in probe.named_parameters():
                    if parameter.dim() > 1:
                        nn.init.xavier_uniform_(parameter)
                    elif name.endswith("bias"):
                        nn.init.zeros_(parameter)
            draws.append(flatten(weights_of(probe)))
    if any(torch.equal(draws[0], other) for other in draws[1:]):
        raise ValueError(
            f"model: initialization={initialization!r} gives the same weights at every draw, since "
            f"no module of {type(model).__name__} that has parameters has reset_parameters()"
        )
    if origin is not None:
        draws[0] = flatten({name: origin[name].cpu() for name in weights_of(model)})
    first = next(model.parameters())
    precise = torch.promote_types(first.dtype, torch.float32)
    return torch.stack([draw.to(precise) for draw in draws]).to(first.device)
