"""16 bits on an accelerator: products lose digits, and what follows them does not.

Products of float32 numbers keep their digits only if torch is told so: by default the convolutions
of a GPU may round their inputs to TF32, of 10 bits. That is the caller's choice; it belongs to a
result, and has to hold on every worker.

``torch.autocast`` casts the inputs of products, and what it casts back to float32 depends on the
device; under ``vmap`` it sees only what the rules of ``vmap`` call, some of which fail where an
activation has 16 bits and a weight has 32. So normalisation and softmax are told here what they are
given, the same on every device and with both methods.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

HALF = (torch.bfloat16, torch.float16)
FLOATS = (torch.float64, torch.float32, *HALF)

_IN_FLOAT32 = {
    *(F.batch_norm, F.instance_norm, F.layer_norm, F.group_norm, F.rms_norm),
    *(torch.batch_norm, torch.instance_norm, torch.layer_norm, torch.group_norm, torch.rms_norm),
    *(F.softmax, torch.softmax, Tensor.softmax),
    *(F.log_softmax, torch.log_softmax, Tensor.log_softmax),
    *(F.prelu, torch.prelu),  # no normalisation, but vmap's rule for it fails, too
}


_PLACES: dict[str, tuple[Any, Any]] = {
    "cuda": (torch.backends.cudnn.conv, torch.backends.cuda.matmul),  # type: ignore[attr-defined]
    "cpu": (torch.backends.mkldnn.conv, torch.backends.mkldnn.matmul),  # type: ignore[attr-defined]
}

Products = Mapping[str, tuple[str, ...]]


def check_dtype(dtype: Any) -> None:
    """Raise a ``ValueError`` unless one can compute in ``dtype``, or it is ``None``."""
    if dtype is not None and dtype not in FLOATS:
        names = ", ".join(map(str, FLOATS))
        raise ValueError(
            f"dtype: expected a floating-point torch.dtype, got {dtype!r} (known are {names})"
        )


def float32_products(device: torch.device) -> str:
    """Say in which format torch may multiply float32 numbers on a device, in words."""
    given = [place.fp32_precision for place in _PLACES.get(device.type, ())]
    formats = ["ieee" if name == "none" else name for name in given]
    return ", ".join(f"{n} {e}" for n, e in zip(("conv", "matmul"), formats, strict=False))


# For :func:`multiply_as`: no product of float32 numbers loses digits.
EXACT: Products = {name: ("ieee", "ieee") for name in _PLACES}


def product_settings() -> Products:
    """Return torch's settings for products of float32 numbers, for :func:`multiply_as`."""
    return {name: tuple(p.fp32_precision for p in places) for name, places in _PLACES.items()}


@contextlib.contextmanager
def multiply_as(settings: Products) -> Iterator[None]:
    """Multiply float32 numbers within a block as in the process where the settings were made."""
    before = product_settings()
    _set_products(settings)
    try:
        yield
    finally:
        _set_products(before)


def _set_products(settings: Products) -> None:
    for name, given in settings.items():
        for place, precision in zip(_PLACES[name], given, strict=True):
            if place.fp32_precision != precision:  # setting it forbids torch's older interface
                place.fp32_precision = precision


def autocasts(device: torch.device, dtype: torch.dtype | None) -> bool:
    """Say whether a computation keeps float32 weights and runs in :func:`autocast`."""
    known = device.type != "cpu" and torch.amp.is_autocast_available(device.type)
    return known and dtype in HALF


@contextlib.contextmanager
def autocast(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Multiply in ``dtype``, one of ``HALF``, and normalise in float32 within a block."""
    # Without a cache: weights change in place from point to point, and what they were cast to must
    # not be taken for them.
    with torch.autocast(device.type, dtype, cache_enabled=False), _NormalisesInFloat32():
        yield


@contextlib.contextmanager
def as_written(device: torch.device) -> Iterator[None]:
    """Run a block as if the caller had no autocast and no inference mode on."""
    kinds = {device.type, "cpu"}
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for kind in kinds:
            if torch.amp.is_autocast_available(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
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
