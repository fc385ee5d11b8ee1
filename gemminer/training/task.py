"""Task: everything that a pruning method may see. The test set is not in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gemminer.core.errors import GemminerError
from gemminer.core.layout import Layout
from gemminer.core.model_state import held_in_evaluation, train_mode
from gemminer.core.progress import Monitor
from gemminer.core.prunable import Prunable, find_prunable
from gemminer.data import Batches
from gemminer.training.checkpoint import Checkpoint
from gemminer.training.feed import Feed, mapped
from gemminer.training.losses import Loss, Metric, accuracy, as_loss, as_values, cross_entropy, ignored_label


class Inside(nn.Module):
    """A model whose prunable weights are vectors of what is inside a mask; a forward pass puts them in their places.

    Args:
        table: the vectors, with the layouts and shapes of the weights they are of.
        places: by the model's own names of its parameters, the flat indices of a vector's values, and the shape.
    """

    def __init__(self, model: nn.Module, table: Prunable, places: Mapping[str, tuple[Tensor, torch.Size]]) -> None:
        super().__init__()
        self.model, self.table, self.places = model, table, dict(places)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        whole = {}
        for name, (index, shape) in self.places.items():
            path, _, own = name.rpartition(".")
            vector = getattr(self.model.get_submodule(path), own)
            whole[name] = vector.new_zeros(shape.numel()).index_put((index,), vector).view(shape)
        return torch.func.functional_call(self.model, whole, args, kwargs)


@dataclass
class Task:
    """The network at its initial weights, the training batches, the loss and the metric: all that a method may see.

    Args:
        model: the network, its parameters at their initial values; a method leaves it as it was.
        train: the training batches.
        validation: held-out training data for methods that choose something; never the test set.
        loss: (output, target) -> scalar to minimise.
        metric: (output, target) -> number, or a number for each example, whose mean is reported; higher is better.
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

    def note(self, text: str) -> None:
        """Tell a person, once, and the record."""
        if text not in self.notes:
            self.notes.append(text)
            self.monitor.note(text)

    def __post_init__(self) -> None:
        if self.held is None:
            self.held = held_in_evaluation(self.model)

    def train_mode(self) -> None:
        """Put the model in training mode, all but the norms that its owner froze."""
        train_mode(self.model, self.held or ())

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
        return mapped(lambda tensor: self.feed.typed(self._placed(tensor), dtype), inputs)

    def place_targets(self, targets: Any) -> Any:
        """A batch's targets, placed; double-precision numbers become the model's type, and others in a double model."""
        dtype = self.dtype
        doubles = (torch.float64,) if dtype is not torch.float64 else (torch.float16, torch.bfloat16, torch.float32)

        def typed(tensor: Tensor) -> Tensor:
            placed = self._placed(tensor)
            return placed.to(dtype) if self.feed.cast and placed.dtype in doubles else placed

        return mapped(typed, targets)

    def forward(self, inputs: Any) -> Any:
        """The model's output for one batch of inputs."""
        return self.feed.call(self.model, self.place_inputs(inputs))

    def loss_of(self, inputs: Any, targets: Any) -> Tensor:
        """The loss of one batch; raises an error of one sentence where output and target do not fit.

        It is 0 where cross-entropy ignores every label of the batch, of which PyTorch would take the mean.
        """
        return self.loss_between(self.forward(inputs), targets)

    def loss_between(self, output: Any, targets: Any) -> Tensor:
        """The loss of a batch's output."""
        ignored = ignored_label(self.loss)
        if ignored is not None and isinstance(output, Tensor) and _all_are(targets, ignored):
            return output.reshape(-1)[:0].sum()
        try:
            found = self.loss(output, self.place_targets(targets))
        except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:
            raise self._misfit("loss", output, targets, error) from error
        return as_loss(found)

    def metric_of(self, inputs: Any, targets: Any) -> Tensor:
        """What the metric returns for one batch, as a tensor; an error is one sentence."""
        output = self.forward(inputs)
        try:
            found = self.metric(output, self.place_targets(targets))
        except GemminerError:
            raise
        except Exception as error:
            raise self._misfit("metric", output, targets, error) from error
        return as_values(found)

    def _misfit(self, what: str, output: Any, targets: Any, error: Exception) -> GemminerError:
        shapes = f"output {_shape(output)}, targets {_shape(targets)}"
        said = str(error) if str(error) else type(error).__name__
        hint = "; give a loss and a metric that read output.logits" if hasattr(output, "logits") else ""
        return GemminerError(f"the {what} does not fit the model and data ({shapes}): {said}{hint}")


def _all_are(targets: Any, label: int) -> bool:
    whole = isinstance(targets, Tensor) and not targets.is_floating_point() and targets.numel() > 0
    return whole and bool((targets == label).all())


def _shape(value: Any) -> str:
    return f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
