"""Losses and gradients of many cells of a slice at once; the weights of all cells are never stored.

A cell with coefficients c has the weights ``sum_k c_k basis_k``, and its loss sends ``c_k`` times
its own gradient back to the basis. So the basis needs only the sums ``sum_cells c_k G``. There are
three ways to them, of equal result:

``loop``
    one cell after another, the plain way;
``vmap``
    the weights of a chunk of cells side by side;
``basis``
    no weights of cells at all: every layer is applied with the weights of the basis, to a batch
    whose samples belong to different cells, and its outputs are combined per sample (see
    ``mpo.layers``). For a plane that is three times the multiplications, in three times as large
    products, and no loop however few images a cell has.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.utils.flop_counter import FlopCounterMode

from landscape_lib import runtime
from landscape_lib.evaluation import batchnorm
from landscape_lib.evaluation.batches import Batch, channels_last_pays, move, reads_channels_last
from landscape_lib.evaluation.measures import accuracy
from landscape_lib.mpo.layers import Chunk, mix_layers, obstacle
from landscape_lib.weights import call_with, flatten, unflatten, weights_of

METHODS = ("auto", "basis", "vmap", "loop")

# "auto" takes the first method whose limit on operations per cell (forward and backward, for all
# its images) is not exceeded: beyond, its extra arithmetic costs more than it saves. Measured on a
# CPU with AVX-512; for accelerators an estimate from the cost of launching operations.
MOST_WORK = {
    "cpu": {"basis": 5e7, "vmap": 1e9},
    "cpu, 16 bits": {"basis": 2e8, "vmap": 6e8},
    "accelerator": {"basis": 1e10},
}

# By default so many operations, and so many images, share a pass: enough to keep the machine busy,
# and little enough that what is kept for the gradient fits into memory.
WORK_TOGETHER = {"cpu": 5e9, "accelerator": 4e11}
IMAGES_TOGETHER = 8192

Loss = Callable[[Any, Any], Tensor]
Pair = tuple[Tensor, Tensor]
Terms = Callable[[Tensor, slice], Tensor]


@dataclass(frozen=True)
class Found:
    """What a step needs to know of its K cells.

    Attributes:
        losses: shape (K,), the mean loss of each cell over its images.
        accuracies: shape (K,); NaN where targets are not class indices.
        gradient: shape (m, n), of the sum of all terms, for each vector of the basis.
    """

    losses: Tensor
    accuracies: Tensor
    gradient: Tensor


class Cells:
    """A private copy of a model, to be measured at many points of a slice.

    It runs in training mode, and batch norm uses the statistics of each cell's own images.

    Args:
        model: it is copied.
        loss: callable ``(output, target) -> scalar mean``.
        dtype: compute dtype; the model's own if ``None``.
    """

    def __init__(self, model: nn.Module, loss: Loss, dtype: torch.dtype | None = None) -> None:
        first = next(model.parameters())
        self.device, self.dtype = first.device, dtype or first.dtype
        self._loss = loss
        self._probe = copy.deepcopy(model).train().requires_grad_(False).to(dtype=dtype)
        batchnorm.use_batch_statistics(self._probe)
        self._like = dict(self._probe.named_parameters())
        self._mixed, self._chunk = self._probe, Chunk()
        self._channels_last = False
        self._work = 1.0  # operations for one image, forward and backward

    def lay_out(self, x: Tensor, y: Tensor) -> Batch:
        """Return samples on the device of the model, as it reads them best."""
        return move(Batch(x, y, len(y)), self.device, self.dtype, self._channels_last)

    def choose(self, method: str, x: Tensor, y: Tensor, cells: int, images: int) -> str:
        """Try the model on a few samples and return the method to use.

        Args:
            method: one of ``METHODS``.
            x: samples (N, ...).
            y: their targets.
            cells: K, cells per step.
            images: images per cell.

        Raises:
            TypeError: the loss returns no scalar.
            ValueError: the model does not allow the method that was asked for.
        """
        some = torch.arange(2 * min(images, 2)) % len(y)  # two cells with at most two images each
        x, y = x[some.to(x.device)], y[some.to(y.device)]
        with runtime.isolated_random_state(0):
            reads = reads_channels_last(self._probe, self.lay_out(x, y).x)
            with FlopCounterMode(display=False) as counter:
                self._try("loop", x, y)
            self._work = max(1.0, counter.get_total_flops() / len(y))
            automatic = self._candidates(self._work * images, cells)
            for candidate in automatic if method == "auto" else [method]:
                pays = channels_last_pays(self.device, self.dtype, candidate)
                self._channels_last = reads and pays
                reason = self._refusal(candidate, x, y)
                if reason is None:
                    return candidate
        raise ValueError(f"method: {method!r} does not run on this model: {reason}")

    def _candidates(self, work: float, cells: int) -> list[str]:
        """Return the methods worth trying, best first, by a rule that is the same every time.

        Args:
            work: operations, forward and backward, for all images of a cell.
            cells: K; a single cell is ordinary training, and gives its bits.
        """
        machine = "cpu" if self.device.type == "cpu" else "accelerator"
        if machine == "cpu" and self.dtype.itemsize == 2:
            machine = "cpu, 16 bits"
        fast = [name for name, most in MOST_WORK[machine].items() if cells > 1 and work <= most]
        return [*fast, "loop"]

    def _refusal(self, method: str, x: Tensor, y: Tensor) -> str | None:
        """Say why a method does not run on this model, and make it ready if it does."""
        if method == "basis":
            reason = obstacle(self._probe) or self._disagreement(x, y)
            if reason is None:
                self._mixed, self._chunk = mix_layers(self._probe)
            return reason
        if method == "vmap":
            try:
                self._try("vmap", x, y)
            except Exception as error:
                return str(error)
        return None

    def step(
        self,
        basis: Tensor,
        coefficients: Tensor,
        batch: Batch,
        images: int,
        terms: Terms,
        method: str,
        chunk: int | None = None,
    ) -> Found:
        """Measure K cells, and take the gradient of a sum of terms, one for each cell.

        Args:
            basis: shape (m, n).
            coefficients: shape (K, m), the first of each cell 1.
            batch: as from :meth:`lay_out`: the samples of all cells, cell after cell, or those of
                one cell, which all then share.
            images: samples of a cell.
            terms: called with the losses of a chunk and its place among the cells, returns the
                terms of these cells.
            method: ``"loop"``, ``"vmap"`` or ``"basis"``.
            chunk: cells that are computed together (a loop takes one); chosen if ``None``.
        """
        measure = {"loop": self._by_loop, "vmap": self._by_vmap, "basis": self._by_basis}[method]
        chunk = 1 if method == "loop" else chunk or self._chunk_size(basis.shape[1], images, method)
        leaf = basis.detach().requires_grad_()
        found = []
        for start in range(0, len(coefficients), chunk):
            part = slice(start, min(start + chunk, len(coefficients)))
            own = slice(part.start * images, part.stop * images)
            x, y = (batch.x, batch.y) if batch.size == images else (batch.x[own], batch.y[own])
            losses, accuracies = measure(leaf, coefficients[part].to(leaf), x, y, images)
            terms(losses, part).sum().backward()
            found.append(torch.stack([losses.detach(), accuracies]))
        assert leaf.grad is not None
        losses, accuracies = torch.cat(found, dim=1)
        return Found(losses, accuracies, leaf.grad)

    def _by_loop(self, leaf: Tensor, cells: Tensor, x: Tensor, y: Tensor, _: int) -> Pair:
        weights = unflatten((cells[0] @ leaf).to(self.dtype), self._like)
        loss, correct = self._score(call_with(self._probe, weights, x), y)
        return loss[None], correct[None]

    def _by_vmap(self, leaf: Tensor, cells: Tensor, x: Tensor, y: Tensor, images: int) -> Pair:
        def at_cell(vector: Tensor, x: Tensor, y: Tensor) -> Pair:
            output = call_with(self._probe, unflatten(vector, self._like), x)
            return self._score(output, y)

        shared = len(y) == images and len(cells) > 1
        if not shared:
            x, y = (t.unflatten(0, (-1, images)) for t in (x, y))
        over = None if shared else 0
        vectors = (cells @ leaf).to(self.dtype)
        with warnings.catch_warnings():  # of operations that vmap takes one by one
            warnings.filterwarnings("ignore", "There is a performance drop")
            return vmap(at_cell, in_dims=(0, over, over), randomness="different")(vectors, x, y)

    def _by_basis(self, leaf: Tensor, cells: Tensor, x: Tensor, y: Tensor, images: int) -> Pair:
        if len(y) == images:
            x, y = (t.repeat(len(cells), *(1,) * (t.dim() - 1)) for t in (x, y))
        parts = leaf.to(self.dtype).split([t.numel() for t in self._like.values()], dim=1)
        self._chunk.basis = {
            name: part.reshape(-1, *tensor.shape)
            for (name, tensor), part in zip(self._like.items(), parts, strict=True)
        }
        self._chunk.cells = cells.to(self.dtype)
        self._chunk.samples = self._chunk.cells.repeat_interleave(images, dim=0)
        output = self._mixed(x).unflatten(0, (-1, images))
        return vmap(self._score)(output, y.unflatten(0, (-1, images)))

    def _score(self, output: Any, y: Tensor) -> Pair:
        """Return the loss of one cell, and its accuracy."""
        if isinstance(output, Tensor) and output.dtype in (torch.bfloat16, torch.float16):
            output = output.float()
        loss = self._loss(output, y)
        if not isinstance(loss, Tensor) or loss.dim() > 0:
            given = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise TypeError(f"loss: expected it to return a scalar tensor, got {given}")
        classes = isinstance(output, Tensor) and output.dim() == y.dim() + 1
        if classes and not y.is_floating_point():
            return loss, accuracy(output.detach(), y).mean().to(loss.dtype)
        return loss, torch.full_like(loss.detach(), torch.nan)

    def _chunk_size(self, parameters: int, images: int, method: str) -> int:
        """Choose how many cells share a pass."""
        machine = "cpu" if self.device.type == "cpu" else "accelerator"
        most = min(IMAGES_TOGETHER, WORK_TOGETHER[machine] / self._work) // images
        if method == "vmap":  # the weights of 64 MiB of cells
            most = min(most, (16 << 20) // parameters)
        return max(1, int(most))

    def _try(self, method: str, x: Tensor, y: Tensor) -> Found:
        """Take the step of two cells around the model's own weights."""
        center = flatten(weights_of(self._probe)).to(torch.promote_types(self.dtype, torch.float32))
        noise = torch.randn(2, len(center), generator=runtime.generator(0))
        basis = torch.cat([center[None], 0.05 * noise.to(center)])
        coefficients = torch.tensor([[1.0, 1.0, -0.5], [1.0, -0.5, -1.0]]).to(basis)
        batch = self.lay_out(x, y)
        return self.step(basis, coefficients, batch, len(y) // 2, lambda losses, _: losses, method)

    def _disagreement(self, x: Tensor, y: Tensor) -> str | None:
        """Try whether mixed layers give the numbers of the loop, in float64 and without dropout."""
        try:
            trial = Cells(copy.deepcopy(self._probe).cpu(), self._loss, torch.float64)
            trial._probe.eval()
            trial._mixed, trial._chunk = mix_layers(trial._probe)
            loop, basis = (trial._try(method, x, y) for method in ("loop", "basis"))
            torch.testing.assert_close(basis.losses, loop.losses, rtol=1e-8, atol=1e-8)
            torch.testing.assert_close(basis.gradient, loop.gradient, rtol=1e-7, atol=1e-8)
        except Exception:
            return "samples meet outside such layers"
        return None
