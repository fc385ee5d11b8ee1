"""The number format a model runs in: float32 as it is, or bfloat16 by autocast, its weights in float32."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from gemminer.core.errors import UsageError, unknown

PRECISIONS = ("fp32", "bf16")


def checked_precision(precision: str, model: nn.Module, device: torch.device) -> str:
    """The precision's name; raises UsageError for one that does not exist, or not for this model or device."""
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    if precision == "fp32":
        return precision
    types = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if torch.float32 not in types:
        own = ", ".join(sorted(str(t).removeprefix("torch.") for t in types))
        raise UsageError(
            f"precision bf16 runs a float32 model in bfloat16, and this is a {own} one: leave precision out, or give "
            "model.float()"
        )
    cuda = device.type == "cuda"
    if not torch.amp.is_autocast_available(device.type) or (cuda and not torch.cuda.is_bf16_supported(False)):
        raise UsageError(f"the device {device} has no bfloat16: leave precision out")
    return precision


def computing(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Within it a model runs in this precision; with fp32 it runs as its caller has it."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def in_float32(value: Any) -> Any:
    """What a model has put out, its bfloat16 tensors in float32: so a loss is computed in these, whatever it does."""
    return tree_map(lambda t: t.float() if isinstance(t, Tensor) and t.dtype == torch.bfloat16 else t, value)


def remark(precision: str, device: torch.device) -> str | None:
    """What is to be said of this precision on this machine, in one sentence."""
    if precision == "fp32" or device.type != "cpu" or native():
        return None
    return "this processor emulates bf16, so what is computed densely is slower than in fp32"


def native() -> bool:
    """Whether the processor has instructions of its own for products of bfloat16."""
    known = torch.cpu.get_capabilities()  # avx512_bf16, amx_bf16, and on ARM bf16 and the like
    return any(bool(there) and "bf16" in name for name, there in known.items())
