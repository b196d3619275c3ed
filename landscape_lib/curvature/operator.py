"""The Hessian of a model's mean loss over a data set, as something that multiplies vectors."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landscape_lib import runtime
from landscape_lib.curvature.risk import Batches, Risk, Sum, check_batchnorm, dtype_of
from landscape_lib.evaluation.batches import check_count, read_batches
from landscape_lib.evaluation.losses import Measure, loss_in
from landscape_lib.slices import check_weights
from landscape_lib.weights import Weights, check_like, flatten, load_weights, unflatten

# Vectors multiplied in one pass: eight take half the time of eight passes, and eight times the
# memory, which only small networks can spare.
TOGETHER, SMALL = 8, 100_000


class Settings(TypedDict, total=False):
    """What every function of ``ll.curvature`` takes by keyword; see :class:`Hessian`."""

    loss: Measure
    weights: Weights | None
    samples: int | None
    batch_size: int
    dtype: torch.dtype | None
    batchnorm: str
    progress: bool
    seed: int


class Hessian:
    """The Hessian of the mean loss, as a linear operator that is never written down.

    A product takes one pass over the data, five to six times as long as the forward pass. The model
    is copied and runs in eval mode on the device of its parameters; the caller's model and the
    global random state stay as they are. Several vectors at once are multiplied by curvlinops
    (Dangel et al., 2025), in forward over reverse mode. A single vector, or what a model's
    operations do not allow in that mode, takes the derivative of the gradient along it
    (Pearlmutter, 1994): for one vector that takes a quarter to three quarters less time.

    Args:
        model: any module. All its named parameters count, also those of ``requires_grad=False``.
        data: anything with ``x`` and ``y``, or an iterable of ``(x, y)`` batches, read once.
        loss: callable ``(output, target) -> scalar mean``. Batches weigh as many as their samples,
            or as their classes weigh where the loss has class weights or leaves out targets; a loss
            that hides what samples weigh, as it takes no ``reduction``, is refused with several.
        weights: where to take the Hessian, for example ``plane.weights_at(1.0, 0.5)``; the model's
            own weights by default.
        samples: a random subset of this size; all by default.
        batch_size: samples per pass, where data come whole: memory follows it.
        dtype: of all computations; that of the model, but at least float32, by default.
        batchnorm: ``"frozen"``, the running statistics of the model. With the other policies of
            ``evaluate`` the loss is another function; they are refused.
        progress: show a progress bar if it takes longer than two seconds.
        seed: of the subset, of random probes and of random numbers that the model draws.

    Attributes:
        count: n, the number of parameters.
        samples: number of samples that the mean is over.
        loss: the mean loss at the weights.
        products: Hessian-vector products computed so far.
        device: of all vectors.
        dtype: of all vectors.

    Raises:
        ImportError: curvlinops is not installed.
        TypeError, ValueError: bad input, or a loss that is not finite or has no second derivative.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        *,
        loss: Measure = F.cross_entropy,
        weights: Weights | None = None,
        samples: int | None = None,
        batch_size: int = 128,
        dtype: torch.dtype | None = None,
        batchnorm: str = "frozen",
        progress: bool = True,
        seed: int = 0,
    ) -> None:
        check_count("batch_size", batch_size)
        self.dtype = dtype_of(model, dtype)
        check_batchnorm(model, batchnorm)
        self.seed, self.products, self._progress = seed, 0, progress
        loss = loss_in(loss, self.dtype)
        with (
            runtime.isolated_random_state(seed),
            torch.inference_mode(False),
            warnings.catch_warnings(),
        ):
            # Importing curvlinops and the first product call it, the latter inside torch.
            warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
            library = _curvlinops()
            batches, _ = read_batches(data, samples, batch_size, seed)
            net = copy.deepcopy(model).eval().to(self.dtype)
            if weights is not None:
                check_like(weights, dict(net.named_parameters()), "weights", "the model's")
                check_weights(weights, "weights")
                load_weights(net, weights)
            net.requires_grad_(True).zero_grad()
            self._parameters = dict(net.named_parameters())
            self.device = next(iter(self._parameters.values())).device
            self.count = sum(p.numel() for p in self._parameters.values())
            self._data = Batches(batches, Risk(net, loss), self.device, self.dtype)
            self.samples, self.loss = self._data.samples, self._data.weigh(loss)
            if not math.isfinite(self.loss):
                raise ValueError(f"model: expected a finite loss at the weights, got {self.loss}")
            self._operator = library.HessianLinearOperator(
                self._data.risk,
                Sum(),
                list(self._parameters.values()),
                self._data,
                check_deterministic=False,
                num_data=self.samples,
                batch_size_fn=lambda batch: batch.size,
            )
            self._modes = self._try()

    @property
    def together(self) -> int:
        """Number of vectors that are best multiplied in one pass."""
        return TOGETHER if self.count <= SMALL else 1

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Multiply one vector, shape (n,), or k of them, shape (n, k); the result has that shape.

        Raises:
            ValueError: another shape, or a product that is not finite.
        """
        if vectors.dim() not in (1, 2) or vectors.shape[0] != self.count:
            raise ValueError(
                f"vectors: expected shape ({self.count},) or ({self.count}, k), "
                f"got {tuple(vectors.shape)}"
            )
        columns = vectors.detach().to(self.device, self.dtype).reshape(self.count, -1)
        parts = [self._multiply(part) for part in columns.split(self.together, dim=1)]
        product = torch.cat(parts, dim=1).view(vectors.shape)
        if not product.isfinite().all():
            raise ValueError("model: the Hessian at these weights has entries that are not finite")
        return product

    def vector(self, direction: Weights, name: str = "direction") -> Tensor:
        """Return a weight vector as one of shape (n,), checked against the model."""
        check_like(direction, self._parameters, name, "the model's parameters")
        check_weights(direction, name)
        return flatten({k: direction[k].to(self.device, self.dtype) for k in self._parameters})

    def weights(self, vector: Tensor) -> Weights:
        """Return a vector of shape (n,) as weights, which can be an axis of a plane."""
        return unflatten(vector, self._parameters)

    @contextmanager
    def working(self, title: str, products: int | None = None) -> Iterator[None]:
        """Show progress within a block, in batches times vectors; the total may be unknown."""
        total = None if products is None else products * len(self._data)
        with runtime.progress_bar(self._progress, desc=title, total=total, unit="batch") as bar:
            self._data.tick = bar.update
            try:
                yield
            finally:
                self._data.tick = None

    def about(self) -> dict[str, Any]:
        """Return what a result was computed from and how, for its attributes."""
        return {
            "batchnorm": "frozen",
            "dtype": str(self.dtype).removeprefix("torch."),
            "samples": self.samples,
            "parameters": self.count,
            "products": self.products,
            "loss": self.loss,
            "seed": self.seed,
            "device": runtime.device_name(self.device),
        }

    def _multiply(self, columns: Tensor) -> Tensor:
        self.products += columns.shape[1]
        self._data.vectors = columns.shape[1]
        with (
            runtime.isolated_random_state(self.seed),
            torch.inference_mode(False),
            torch.autocast(self.device.type, enabled=False),
        ):
            several = columns.shape[1] > 1
            if self._modes[0 if several else -1] == "forward over reverse":
                return self._operator @ columns
            self._data.vectors = 1
            return torch.stack([self._differentiate(column) for column in columns.T], dim=1)

    @torch.enable_grad()
    def _differentiate(self, vector: Tensor) -> Tensor:
        """Multiply one vector by differentiating the gradient along it."""
        parameters = list(self._parameters.values())
        along = list(self.weights(vector).values())
        total = torch.zeros_like(vector)
        for batch, _ in self._data:
            risk = self._data.risk(batch)
            if not risk.requires_grad:  # a constant
                continue
            first = torch.autograd.grad(risk, parameters, create_graph=True, materialize_grads=True)
            _check_differentiable(first)
            # A gradient that is constant has no derivative, for autograd.
            pairs = [(g, v) for g, v in zip(first, along, strict=True) if g.requires_grad]
            if pairs:
                outputs, seeds = zip(*pairs, strict=True)
                second = torch.autograd.grad(outputs, parameters, seeds, materialize_grads=True)
                total += flatten(dict(enumerate(second)))  # type: ignore[arg-type]
        return total

    def _try(self) -> list[str]:
        """Return the modes that work, on two samples: first that for several vectors."""
        source, works = runtime.generator(0), []
        vectors = torch.randn(self.count, 2, generator=source).to(self.device, self.dtype)
        with self._data.two_samples():
            for mode in ("forward over reverse", "reverse over reverse"):
                self._modes = [mode]
                try:
                    once = self._multiply(vectors)
                    _check_symmetric(vectors, once, self._multiply(once))
                    works.append(mode)
                except Exception as error:
                    reason = error
        if not works:
            raise ValueError(f"model: the loss has no second derivative here: {reason}") from reason
        self.products = 0
        return works


def _check_symmetric(vectors: Tensor, once: Tensor, twice: Tensor) -> None:
    """Raise an error where torch has a wrong derivative: v·H(Hv) is no longer |Hv|²."""
    v, hv, hhv = (t.double() for t in (vectors, once, twice))
    known = hv.norm(dim=0) > 1e3 * torch.finfo(vectors.dtype).eps * v.norm(dim=0)  # not rounding
    squares = hv.square().sum(0)
    wrong = ((v * hhv).sum(0) - squares).abs() > torch.finfo(vectors.dtype).eps ** 0.4 * squares
    if bool((known & wrong).any()):
        raise RuntimeError("torch's products with it are not symmetric: an operation is at fault")


def _curvlinops() -> ModuleType:
    try:
        import curvlinops
    except ImportError as error:
        raise ImportError(
            "ll.curvature needs curvlinops: pip install curvlinops-for-pytorch==3.0.1"
        ) from error
    return curvlinops


def _check_differentiable(gradients: tuple[Tensor, ...]) -> None:
    """Raise an error where autograd would take the derivative of an operation for 0."""
    nodes, seen = [gradient.grad_fn for gradient in gradients], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            if node.name().endswith("::Error"):
                raise RuntimeError("an operation is marked as once_differentiable")
            seen.add(node)
            nodes += [before for before, _ in node.next_functions]
