"""Task: everything that a pruning method may see. The test set is not in it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from gemminer.core.devices import at_hand
from gemminer.core.errors import GemminerError, UsageError, cause
from gemminer.core.layout import Layout
from gemminer.core.model_state import held_in_evaluation, train_mode
from gemminer.core.progress import Monitor
from gemminer.core.prunable import Prunable, find_prunable
from gemminer.data import Batches
from gemminer.training.checkpoint import Checkpoint
from gemminer.training.feed import Feed, mapped, reason, shapes
from gemminer.training.losses import (
    Loss,
    Metric,
    Step,
    accuracy,
    as_loss,
    as_values,
    cross_entropy,
    ignored_label,
    one_shape,
    output_loss,
    returned,
)
from gemminer.training.precision import computing, in_float32
from gemminer.training.ranks import Ranks


class Swapped(nn.Module):
    """A model that is called with other values for its parameters.

    What is called is the model itself while it has them, so that a user's step finds its modules and methods.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def values(self) -> dict[str, Tensor]:
        """The values by the model's own names."""
        raise NotImplementedError

    def call(self, function: Callable[[nn.Module], Any]) -> Any:
        """What `function` of the model returns while it has the values."""
        values = {f"model.{name}": value for name, value in self.values().items()}
        return torch.func.functional_call(_Calling(self.model, function), values, ())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(lambda model: model(*args, **kwargs))


class _Calling(nn.Module):
    def __init__(self, model: nn.Module, function: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self) -> Any:
        return self.function(self.model)


class Inside(Swapped):
    """A model whose prunable weights are vectors of what is inside a mask; a forward pass puts them in their places.

    Args:
        table: the vectors, with the layouts and shapes of the weights they are of.
        places: by the model's own names of its parameters, the flat indices of a vector's values, and the shape.
    """

    def __init__(self, model: nn.Module, table: Prunable, places: Mapping[str, tuple[Tensor, torch.Size]]) -> None:
        super().__init__(model)
        self.table, self.places = table, dict(places)

    def values(self) -> dict[str, Tensor]:
        whole = {}
        for name, (index, shape) in self.places.items():
            path, _, own = name.rpartition(".")
            vector = getattr(self.model.get_submodule(path), own)
            whole[name] = vector.new_zeros(shape.numel()).index_put((index,), vector).view(shape)
        return whole


class _Seen(Exception):
    """A step has called the model."""


@dataclass
class Task:
    """The network at its initial weights, the training batches, the loss and the metric: all that a method may see.

    Args:
        model: the network, its parameters at their initial values; a method leaves it as it was.
        train: the training batches.
        validation: held-out training data for methods that choose something; never the test set.
        loss: (output, target) -> scalar to minimise.
        metric: (output, target) -> number, or a number for each example, whose mean is reported; higher is better. With
            a step it is called with (model, batch).
        metric_name: the metric's name in reports.
        include: names of further parameters to prune, as shell patterns; see `core.prunable.find_prunable`.
        exclude: parameter names to leave dense, as shell patterns.
        embeddings: prune embedding tables too.
        engine: "dense" computes every weight, "sparse" the kept ones only, "auto" (on a CPU) what is faster.
        below: parameter name -> the density below which its layer computes kept weights only, as `training.engine`
            chose it for the experiment; a layer that is not named is dense. None: to be chosen when it is needed.
        channels_last: give batches of images to the model in that memory format.
        feed: how a batch's inputs are given to the model; by default as they are.
        within: masks of the prunable weights, inside which every search stays; see `gemminer.methods.inside`.
        held: the norms that stay in evaluation mode while the model trains; by default
            `core.model_state.held_in_evaluation` of the model as it is now.
        phase: the name under which a search's epochs are logged.
        checkpoint: the file from which a killed search is resumed.
        monitor: told of every step and epoch.
        notes: warnings and remarks for a person, in order; shared by the tasks that are made of this one.
        first: the first training batch, if it has been taken: a look at it asks the user's loader no more.
        ranks: the processes that work together, of which this is one; `train` has this one's batches then.
        step: (model, batch) -> loss, called in place of the model and the loss; a batch's inputs are the whole batch.
        precision: "fp32", or "bf16": the model runs under autocast, and so do loss and metric, on float32 outputs.
        accumulate: the batches of an optimiser step.
        begun: the steps of a training that the model's weights have behind them: methods that train them, and whoever
            trains them afterwards, go on from there (`position`).
    """

    model: nn.Module
    train: Batches
    validation: Batches | None = None
    loss: Loss = cross_entropy
    metric: Metric = accuracy
    metric_name: str = "accuracy"
    engine: str = "auto"
    below: Mapping[str, float] | None = None
    channels_last: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    embeddings: bool = False
    feed: Feed = field(default_factory=Feed)
    within: Mapping[str, Tensor] | None = None
    held: tuple[str, ...] | None = None
    phase: str = "search"
    checkpoint: Checkpoint | None = None
    monitor: Monitor = field(default_factory=Monitor)
    notes: list[str] = field(default_factory=list)
    first: tuple[Any, Any] | None = None
    step: Step | None = None
    precision: str = "fp32"
    accumulate: int = 1
    ranks: Ranks | None = None
    begun: int = 0

    def note(self, text: str) -> None:
        """Tell a person, once, and the record."""
        if text not in self.notes:
            self.notes.append(text)
            self.monitor.note(text)

    def __post_init__(self) -> None:
        if self.held is None:
            self.held = held_in_evaluation(self.model)
        if self.step is not None:
            self.loss = returned

    def train_mode(self) -> None:
        """Put the model in training mode, all but the norms that its owner froze."""
        train_mode(self.model, self.held or ())

    @property
    def steps(self) -> int:
        """Optimiser steps in an epoch, as many as the data promises."""
        return math.ceil(len(self.train) / self.accumulate)

    def position(self, begun: int, epochs: int) -> tuple[int, int]:
        """The epoch of a training's schedule, and the steps of it that are over, from which `begun` steps go on.

        Raises UsageError where the training has no step left.
        """
        if begun >= epochs * self.steps:
            raise UsageError(
                f"the weights are those of step {begun} of a training, and this one has {epochs * self.steps} steps "
                f"({epochs} epochs of {self.steps}), none after that: train for more epochs"
            )
        return divmod(begun, self.steps)

    def prunable(self) -> dict[str, nn.Parameter]:
        """The weights a ticket may remove, by name: those of `core.prunable.find_prunable` for this task."""
        return dict(self.table().weights)

    def table(self) -> Prunable:
        """The weights a ticket may remove, how their axes are read, and which others stay dense, and why."""
        if isinstance(self.model, Inside):
            return self.model.table
        return find_prunable(self.model, include=self.include, exclude=self.exclude, embeddings=self.embeddings)

    def layouts(self) -> Mapping[str, Layout]:
        """How the axes of each prunable weight are read, by name."""
        return self.table().layouts

    def first_batch(self) -> tuple[Any, Any]:
        """The first training batch, to look at, its tensors the caller's; raises GemminerError where there is none."""
        batch = self.first or next(iter(self.train.epoch(0)), None)
        if batch is None:
            raise GemminerError("there is nothing to train on: the training data gave no batch")
        inputs, targets = batch
        return mapped(torch.clone, inputs), mapped(torch.clone, targets)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype | None:
        """The type of the model's first floating-point parameter."""
        return next((p.dtype for p in self.model.parameters() if p.is_floating_point()), None)

    def place(self, value: Any) -> Any:
        """A batch on the model's device and in its memory format."""
        return mapped(self._placed, value)

    def _placed(self, tensor: Tensor) -> Tensor:
        if tensor.is_inference() and not torch.is_inference_mode_enabled():
            tensor = tensor.clone()  # one made in inference mode cannot be kept for a backward pass
        if self.channels_last and tensor.dim() == 4:
            return tensor.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        return tensor.to(self.device, non_blocking=True)

    def place_inputs(self, inputs: Any) -> Any:
        """A batch's inputs as the model takes them: placed, and in its type."""
        dtype = self.dtype
        return mapped(lambda tensor: self.feed.typed(self._placed(tensor), dtype), self.feed.taken(inputs))

    def place_targets(self, targets: Any) -> Any:
        """A batch's targets, placed; double-precision numbers become the model's type, and others in a double model."""
        dtype = self.dtype
        doubles = (torch.float64,) if dtype is not torch.float64 else (torch.float16, torch.bfloat16, torch.float32)

        def typed(tensor: Tensor) -> Tensor:
            placed = self._placed(tensor)
            return placed.to(dtype) if self.feed.cast and placed.dtype in doubles else placed

        return mapped(typed, targets)

    def forward(self, inputs: Any) -> Any:
        """The model's output for one batch of inputs; with a step, the loss that it returns."""
        if self.step is not None:
            return self._with_model(self.step, inputs)
        with self._computing():
            found = self.feed.call(self.model, self.place_inputs(inputs))
        return found if self.precision == "fp32" else in_float32(found)

    def _computing(self) -> contextlib.AbstractContextManager[Any]:
        return computing(self.precision, self.device)

    def _with_model(self, function: Callable[[Any, Any], Any], batch: Any) -> Any:
        """What a user's function of the model and a batch returns."""
        placed = self.place_inputs(batch)

        def called(model: nn.Module) -> Any:
            return model.call(called) if isinstance(model, Swapped) else function(model, placed)

        with self._computing():
            return called(self.model)

    def output(self, inputs: Any) -> Any:
        """What the model puts out for one batch, without a loss of its own; with a step, when that first calls it."""
        if self.step is None:
            found = self.forward(inputs)
            alone = self.loss is output_loss and isinstance(found, Mapping)
            return {name: part for name, part in found.items() if name != "loss"} if alone else found
        seen: list[Any] = []

        def stop(module: nn.Module, args: Any, output: Any) -> None:
            seen.append(output)
            raise _Seen

        with self.hooked(stop), contextlib.suppress(_Seen):
            self.forward(inputs)
        if not seen:
            raise GemminerError("the method needs the model's output, and step never calls the model itself")
        return seen[0]

    @contextlib.contextmanager
    def hooked(self, hook: Callable[[nn.Module, Any, Any], Any]) -> Iterator[None]:
        """Call `hook` with the model, its arguments and its output when it is called; what it returns is put out."""
        model = self.model
        while isinstance(model, Swapped):
            model = model.model
        handle = model.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def loss_of(self, inputs: Any, targets: Any) -> Tensor:
        """The loss of one batch; raises an error of one sentence where output and target do not fit.

        It is 0 where cross-entropy ignores every label of the batch, of which PyTorch would take the mean.
        """
        return self.loss_between(self.forward(inputs), targets)

    def loss_between(self, output: Any, targets: Any) -> Tensor:
        """The loss of a batch's output."""
        ignored = ignored_label(self.loss)
        empty = _all_are(targets, ignored) if ignored is not None and isinstance(output, Tensor) else None
        known = None if empty is None else at_hand(empty)
        if known:
            return cast(Tensor, output).reshape(-1)[:0].sum()
        try:
            with self._computing():
                found = self.loss(output, self.place_targets(targets))
        except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:
            raise self._misfit("loss", output, targets, error) from cause(error)
        loss = as_loss(found, "loss" if self.step is None else "step")
        loss = loss if self.precision == "fp32" else in_float32(loss)
        # Where the labels are on a device, nothing waits for it: the mean of nothing is NaN, its gradient is 0.
        return loss if empty is None or known is not None else torch.where(empty.to(loss.device), 0.0, loss)

    def metric_of(self, inputs: Any, targets: Any) -> Tensor:
        """What the metric returns for one batch, as a tensor; an error is one sentence."""
        output = None if self.step is not None else self.forward(inputs)
        try:
            if self.step is not None:
                found = self._with_model(self.metric, inputs)
            else:
                with self._computing():
                    found = self.metric(output, self.place_targets(targets))
        except GemminerError:
            raise
        except Exception as error:
            if self.step is not None:
                raise GemminerError(f"the metric fails on a batch ({shapes(inputs)}): {reason(error)}") from cause(
                    error
                )
            raise self._misfit("metric", output, targets, error) from cause(error)
        return as_values(found)

    def _misfit(self, what: str, output: Any, targets: Any, error: Exception) -> GemminerError:
        shapes = f"output {_shape(output)}, targets {_shape(targets)}"
        said = str(error) if str(error) else type(error).__name__
        hint = "; give a loss and a metric that read output.logits" if hasattr(output, "logits") else ""
        if isinstance(targets, Tensor) and targets.is_floating_point() and (how := one_shape(output, targets)):
            hint = f"; give {how}"
        return GemminerError(f"the {what} does not fit the model and data ({shapes}): {said}{hint}")


def _all_are(targets: Any, label: int) -> Tensor | None:
    whole = isinstance(targets, Tensor) and not targets.is_floating_point() and targets.numel() > 0
    return (targets == label).all() if whole else None


def _shape(value: Any) -> str:
    return f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
