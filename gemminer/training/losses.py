"""Losses and metrics: which are cross-entropy, the metric where none is given, and what either may return."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gemminer.core.errors import UsageError

Loss = Callable[[Any, Any], Tensor]
Step = Callable[[Any, Any], Tensor]  # (model, batch) -> loss
Metric = Callable[[Any, Any], Any]
IGNORED = -100  # the label that PyTorch's cross-entropy leaves out by default


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of logits (N, C, ...) or, for tokens, (N, T, C) against class indices of the leading shape."""
    return F.cross_entropy(*_classes_second(output, target))


def output_loss(output: Any, target: Any) -> Tensor:
    """The loss that a model's output has, as an attribute or under the name "loss", as in transformers."""
    found: Tensor = output["loss"] if isinstance(output, Mapping) else output.loss
    return found


def has_loss(output: Any) -> bool:
    """Whether a model's output has a loss of its own."""
    found = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    return isinstance(found, Tensor)


def returned(output: Tensor, target: Any) -> Tensor:
    """What a step returned is the loss."""
    return output


def accuracy(output: Tensor, target: Tensor, ignore_index: int = IGNORED) -> Tensor:
    """The fraction of predictions that are right: a value for each label but those ignored, to be averaged."""
    output, target = _classes_second(output, target)
    right = (output.argmax(dim=1) == target).double()
    labelled = target != ignore_index
    return right if bool(labelled.all()) else right[labelled]


def _classes_second(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if output.dim() == target.dim() + 1 and output.shape[:-1] == target.shape:
        return output.reshape(-1, output.shape[-1]), target.reshape(-1)  # (N, T, C): classes last, as in text
    return output, target


# --- which loss, which metric ----------------------------------------------------------------------------------


def ignored_label(function: Any) -> int | None:
    """The label that a cross-entropy, or our accuracy, leaves out; None for any other function.

    >>> ignored_label(nn.CrossEntropyLoss(ignore_index=0)), ignored_label(F.mse_loss)
    (0, None)
    """
    fixed: dict[str, Any] = {}
    while True:
        if isinstance(function, functools.partial):
            fixed = {**function.keywords, **fixed}
            function = function.func
        elif hasattr(function, "_orig_mod"):  # of torch.compile
            function = function._orig_mod
        elif isinstance(getattr(function, "__self__", None), nn.Module):
            function = function.__self__
        else:
            break
    if isinstance(function, (nn.CrossEntropyLoss, nn.NLLLoss)):
        return int(function.ignore_index)
    known = any(function is f for f in (cross_entropy, accuracy, F.cross_entropy, F.nll_loss))
    return int(fixed.get("ignore_index", IGNORED)) if known else None


@dataclass(frozen=True)
class NegativeLoss:
    """The metric where none is given and the loss is not cross-entropy: minus the loss, higher is better."""

    loss: Loss

    def __call__(self, output: Any, target: Any) -> Tensor:
        with torch.no_grad():
            return -as_loss(self.loss(output, target))


def metric_for(loss: Loss, target: Any) -> tuple[Metric, str]:
    """The metric for a loss and targets like these, and its name: accuracy for class indices, else minus the loss."""
    ignored = ignored_label(loss)
    if ignored is not None and isinstance(target, Tensor) and not target.is_floating_point():
        return (accuracy if ignored == IGNORED else functools.partial(accuracy, ignore_index=ignored)), "accuracy"
    return NegativeLoss(loss), f"negative {_name(loss)}"


def metric_name(metric: Metric) -> str:
    """The name of a user's metric."""
    name = _name(metric)
    return "metric" if name == "loss" else name


def _name(function: Any) -> str:
    """A function's or a loss module's name; "loss" where it has none, as a lambda."""
    while isinstance(function, functools.partial):
        function = function.func
    name = str(getattr(function, "__name__", type(function).__name__))
    return name if name.isidentifier() else "loss"


def check_targets(loss: Loss, output: Any, target: Any) -> None:
    """Raise UsageError where the default loss would take numbers to predict for the probabilities of classes."""
    if loss is not cross_entropy or not isinstance(target, Tensor) or not target.is_floating_point():
        return
    if target.shape == output.shape and target.dim() > 1 and target.shape[1] > 1:
        sums = target.double().sum(dim=1)
        if bool((target >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-2):
            return
    raise UsageError(
        "the targets are numbers, neither classes nor probabilities of classes, so cross-entropy has no meaning: give "
        "a loss, for example loss=torch.nn.functional.mse_loss"
    )


def one_shape(output: Any, target: Any) -> str | None:
    """How an output and targets of as many numbers get one shape, where a loss would broadcast the two to more.

    Outputs (N, 1) minus targets (N,) are (N, N): each output against every target. None for all others.

    >>> one_shape(torch.zeros(8, 1), torch.zeros(8)), one_shape(torch.zeros(8), torch.zeros(8))
    ("targets.unsqueeze(-1), or the model's output.squeeze(-1)", None)
    """
    if not isinstance(output, Tensor) or not isinstance(target, Tensor) or output.numel() != target.numel():
        return None
    try:
        together = torch.broadcast_shapes(output.shape, target.shape)
    except RuntimeError:
        return None
    if together.numel() == output.numel():
        return None
    if target.dim() < output.dim():
        return "targets.unsqueeze(-1), or the model's output.squeeze(-1)"
    return "targets.squeeze(-1), or the model's output.unsqueeze(-1)"


# --- what they return ------------------------------------------------------------------------------------------


def as_loss(value: Any, what: str = "loss") -> Tensor:
    """A loss as a tensor without dimensions; raises UsageError, which says what to return, for what is none.

    Args:
        what: the name of the user's function, in that sentence.
    """
    if isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point():
        if torch.is_grad_enabled() and not value.requires_grad:
            raise UsageError(
                f"the {what} has no gradient: compute it from the model's output, without detach(), item() or no_grad()"
            )
        return value if value.dim() == 0 else value.reshape(())
    raise UsageError(f"the {what} must return one number as a tensor with a gradient, not {_got(value)}")


def as_values(value: Any) -> Tensor:
    """What a metric returned, as a tensor; raises UsageError, which says what to return, for what is no number."""
    if isinstance(value, Tensor) and not value.is_complex():
        return value
    if isinstance(value, (bool, int, float, np.bool_, np.integer, np.floating)):
        return torch.tensor(float(value), dtype=torch.float64)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(np.array(value, dtype=np.float64))
    raise UsageError(
        f"the metric must return a number, or a tensor or array of a number for each example, not {_got(value)}"
    )


def _got(value: Any) -> str:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            return f'{value.numel()} numbers of shape {tuple(value.shape)}: return their mean (reduction="mean")'
        return f"a tensor of {value.dtype}"
    if isinstance(value, Mapping):
        return f"a dictionary of {', '.join(map(str, value))}: return one of its values"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}: return one of its parts"
    if isinstance(value, (bool, int, float, np.generic)):
        return f"a {type(value).__name__}, which has no gradient: return the tensor, without item()"
    return "None: does the function lack its return?" if value is None else f"a {type(value).__name__}"
