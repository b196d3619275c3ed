"""What a forward pass takes, per sample: operations, and memory for activations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import flop_registry

from landscape_lib.evaluation.batches import first_samples, samples_in
from landscape_lib.runtime import free_memory

# What a forward pass may keep in the caches of a CPU. Measured: the small CNN, VGG-9 and ResNet-20
# are fastest where the largest layer's input and output take 5 to 15 MiB.
CACHE_BYTES = 16 << 20
CPU_BYTES = 256 << 20

# What the largest layer of a forward pass may keep on an accelerator: a pass of many samples costs
# as many launches as one of few, and with so many launching takes little of the time.
ACCELERATOR_BYTES = 1 << 30
DEFAULT_BATCH = 512

# Samples of all points of one ``vmap`` call, on an accelerator and on a CPU.
SAMPLES_AT_ONCE = (1 << 17, 1 << 15)

# Outputs that are measured in one go, so that measuring costs little beside computing.
MEASURED_SAMPLES = 4096
MEASURED_BYTES = 4 << 20


@dataclass(frozen=True)
class Workload:
    """The work of one forward pass of one sample; NaN where it could not be learnt.

    Attributes:
        flops: floating-point operations of convolutions and matrix products; a multiplication and
            an addition are two.
        activations: bytes of input and output of the layer that has most.
        output: bytes of the model's output.
    """

    flops: float
    activations: float
    output: float


def _recurrent(x: Tensor, *given: Any, **_: Any) -> int:
    """Return the operations of an LSTM that is one call: each step multiplies by all weights."""
    weights = [t for t in tree_flatten(given[:4])[0] if isinstance(t, Tensor) and t.dim() == 2]
    return 2 * x.shape[:-1].numel() * sum(t.numel() for t in weights)


_aten = torch.ops.aten
# What torch's registry leaves out: an LSTM on a CPU or by cuDNN, attention on a CPU.
_LEFT_OUT = {
    _aten.mkldnn_rnn_layer: _recurrent,
    _aten._cudnn_rnn: _recurrent,
    _aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        _aten._scaled_dot_product_flash_attention
    ],
}


class _Counter(TorchDispatchMode):
    """Adds up operations. Torch's own counter imports its compiler: a second, each time anew."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        kind = func._overloadpacket
        formula = flop_registry.get(kind) or _LEFT_OUT.get(kind)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out


def workload(model: nn.Module, x: Any) -> Workload:
    """Measure a model, in the mode in which it is to run, on at most two samples."""
    few = first_samples(x)
    size = samples_in(few)
    largest = [0.0]

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        largest.append(_bytes((inputs, output)))

    leaves = [module for module in model.modules() if not list(module.children())]
    hooks = []
    try:
        for module in leaves:
            hooks.append(module.register_forward_hook(note))
        with torch.no_grad(), _Counter() as counter:
            output = model(few)
    except Exception:
        return Workload(math.nan, math.nan, math.nan)
    finally:
        for hook in hooks:
            hook.remove()
    return Workload(counter.flops / size, max(largest) / size, _bytes(output) / size)


def _bytes(value: Any) -> float:
    tensors = [t for t in tree_flatten(value)[0] if isinstance(t, Tensor)]
    return float(sum(t.numel() * t.element_size() for t in tensors))


def fastest_batch(work: Workload, device: torch.device) -> int:
    """Return the samples of a forward pass with which a device computes fastest, a power of two.

    From 16 to 512 on a CPU, whose caches hold the activations; up to 16,384 on an accelerator,
    whatever its free memory: the same computation is to have the same batches everywhere.
    """
    if not work.activations > 0:
        return DEFAULT_BATCH
    if device.type == "cpu":
        return 2 ** min(9, max(4, round(math.log2(CACHE_BYTES / work.activations))))
    return 2 ** min(14, max(4, math.floor(math.log2(ACCELERATOR_BYTES / work.activations))))


def measured_together(work: Workload) -> int:
    """Return how many outputs to keep for measuring them together: few megabytes of them."""
    if not work.output > 0:
        return 0
    return int(min(MEASURED_SAMPLES, MEASURED_BYTES / work.output))


def points_at_once(work: Workload, parameters: int, samples: int, device: torch.device) -> int:
    """Return how many points to evaluate in one ``vmap`` call, at least 1.

    They may take 256 MiB, or half of the free memory of an accelerator; there the last bits of a
    result can depend on how many points are together.
    """
    activations = 0.0 if math.isnan(work.activations) else work.activations
    # A point's weights are there in full precision and in the dtype of the computation.
    bytes_per_point = 3 * 4 * parameters + samples * activations
    on_cpu = device.type == "cpu"
    memory = CPU_BYTES if on_cpu else 0.5 * free_memory(device)
    return max(1, min(int(memory / bytes_per_point), SAMPLES_AT_ONCE[on_cpu] // samples))
