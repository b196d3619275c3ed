"""16 bits on an accelerator: products lose digits, and what follows them does not.

``torch.autocast`` casts the inputs of products, and what it casts back to float32 depends on the
device; under ``vmap`` it sees only what the rules of ``vmap`` call, some of which fail where an
activation has 16 bits and a weight has 32. So normalisation and softmax are told here what they are
given, the same on every device and with both methods.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

HALF = (torch.bfloat16, torch.float16)

_IN_FLOAT32 = {
    *(F.batch_norm, F.instance_norm, F.layer_norm, F.group_norm, F.rms_norm),
    *(torch.batch_norm, torch.instance_norm, torch.layer_norm, torch.group_norm, torch.rms_norm),
    *(F.softmax, torch.softmax, Tensor.softmax),
    *(F.log_softmax, torch.log_softmax, Tensor.log_softmax),
    *(F.prelu, torch.prelu),  # no normalisation, but vmap's rule for it fails, too
}


def autocasts(device: torch.device, dtype: torch.dtype | None) -> bool:
    """Say whether a computation in ``dtype`` has weights in float32 and runs in :func:`autocast`.

    On a CPU weights and inputs are cast once instead, and not anew in every pass.
    """
    known = device.type != "cpu" and torch.amp.is_autocast_available(device.type)
    return known and dtype in HALF


@contextlib.contextmanager
def autocast(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Multiply in ``dtype`` and normalise in float32 within a block, in this thread.

    Args:
        device: of all tensors.
        dtype: one of ``HALF``.
    """
    # Without a cache: weights change in place from point to point, and what they were cast to must
    # not be taken for them.
    with torch.autocast(device.type, dtype, cache_enabled=False), _NormalisesInFloat32():
        yield


def at_least_float32(value: Any) -> Any:
    """Return a tensor of 16 bits in float32, and anything else as it is."""
    return value.float() if isinstance(value, Tensor) and value.dtype in HALF else value


class _NormalisesInFloat32(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _IN_FLOAT32:
            args = [at_least_float32(value) for value in args]
            kwargs = {name: at_least_float32(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)
