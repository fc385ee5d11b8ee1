"""A model and its data as an experiment, after each has been looked at."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gemminer import data
from gemminer.core import progress
from gemminer.core.errors import UsageError, cause
from gemminer.core.fitting import require_numbers
from gemminer.core.model_state import borrowed, gradients, modes_note, named_state
from gemminer.core.names import named_parameters, unwrapped
from gemminer.core.numbers import shown, whole
from gemminer.core.progress import Monitor, Silent
from gemminer.core.randomness import private_randomness
from gemminer.data import Batches
from gemminer.runs.experiment import BATCH_SIZE, Experiment
from gemminer.training import cost, engine
from gemminer.training.feed import Feed, feeds_of_batch, feeds_of_step, has_logits, mapped, reason, shapes
from gemminer.training.look import with_metric
from gemminer.training.losses import Metric, cross_entropy, has_loss, output_loss
from gemminer.training.precision import checked_precision
from gemminer.training.ranks import Ranks
from gemminer.training.settings import Settings
from gemminer.training.shards import reseeded, sharded
from gemminer.training.task import Task


def wants_channels_last(task: Task) -> bool:
    """Whether batches of images should be laid out channels-last: up to 1.7x faster convolutions on a CPU.

    It is tried forwards and backwards on a borrowed model, since one that flattens with `view` cannot take it: on eight
    examples, and on the whole first batch if that fails, as a model may take batches of one size only.
    """
    if not any(isinstance(module, nn.Conv2d) for module in task.model.modules()):
        return False
    trial = dataclasses.replace(task, channels_last=True)
    inputs, targets = task.first_batch()
    tries = [(inputs, targets)]
    if isinstance(inputs, Tensor) and isinstance(targets, Tensor) and inputs.shape[:1] == targets.shape[:1]:
        tries.insert(0, (inputs[:8], targets[:8]))
    for some in tries:
        with borrowed(task.model), private_randomness():
            try:
                trial.loss_of(*some).backward()
            except Exception:  # a trial: a model may raise anything on what is no whole batch
                continue
            return True
    return False


def looked_at(task: Task, first: tuple[Any, Any] | None, what: str, feeds: Iterable[Feed]) -> Feed:
    """The first of these ways in which the model takes a first batch's inputs; model and batch are left as they were.

    Training data are tried in training mode, others in evaluation mode. Raises UsageError if it takes them in none, or
    if there is to be a loss in what it puts out and is none.
    """
    if first is None:
        raise UsageError(f"the {what} data gave no batch")
    failed: Exception | None = None
    taken = False
    for feed in feeds:
        trial = dataclasses.replace(task, feed=feed)
        recorded = task.step is not None and what == "training"  # a step may ask for gradients itself
        with borrowed(task.model), private_randomness(), torch.set_grad_enabled(recorded):
            trial.train_mode() if what == "training" else task.model.eval()
            try:
                output = trial.forward(mapped(torch.clone, first[0]))
            except Exception as error:  # whatever a model raises
                failed = failed or error
                continue
            taken = True
            if feed.own_loss and not has_loss(output):
                continue
            default = task.step is None and task.loss is cross_entropy and not feed.own_loss
            return dataclasses.replace(feed, logits=feed.logits or (default and has_logits(output)))
    if taken or failed is None:
        raise UsageError(
            f"there is no loss for the {what} data ({shapes(first[0])}): the model's output has none, and no loss of "
            'output and labels was given; give the rows "labels", or a DataLoader whose collator makes them, or give '
            "step=, a function of the model and a batch that returns it"
        )
    kind = type(unwrapped(task.model)).__name__
    if task.step is None and isinstance(failed, NotImplementedError) and f"Module [{kind}] is missing" in str(failed):
        raise UsageError(
            f"{kind} has no forward, so there is no output for a loss: give step=, a function of the model and a batch "
            "that returns the loss; a Lightning module is searched with its own training_step by "
            "TicketCallback(mine=dict(density=...))"
        ) from cause(failed)
    how = "the model does not take" if task.step is None else "step fails on"
    said = f"{how} the {what} data's inputs ({shapes(first[0])}): {reason(failed)}"
    lists = [
        name for name, part in (first[0].items() if isinstance(first[0], Mapping) else ()) if isinstance(part, list)
    ]
    if lists and task.step is None:
        said += (
            f"; {' and '.join(map(str, lists))} of the rows are lists, which are not put together as a tensor: give "
            "tensors, or a DataLoader whose collate_fn makes them, as trainer.get_train_dataloader()"
        )
    raise UsageError(said) from cause(failed)


def _by_step(task: Mapping[str, Any], metric: Any) -> bool:
    """Whether there is a step, which takes whole batches; raises UsageError for functions that cannot be."""
    step, loss = task.get("step"), task.get("loss", cross_entropy)
    of = "(output, target)" if step is None else "(model, batch)"
    for name, function, its in (("loss", loss, of), ("step", step, "(model, batch)"), ("metric", metric, of)):
        if isinstance(function, type):
            raise UsageError(f"{name} must be a function of {its}, not the class {function.__name__}: make one")
        if not callable(function) and (name == "loss" or function is not None):
            raise UsageError(f"{name} must be a function of {its}, not {shown(function)}")
    if step is not None and loss is not cross_entropy:
        raise UsageError("step returns the loss itself: give step or loss, not both")
    return step is not None


@gradients()
def build(
    model: nn.Module,
    train: Any,
    *,
    validation: Any = None,
    test: Any = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    classes: tuple[str, ...] = (),
    metric: Metric | None = None,
    ranks: Ranks | None = None,
    **task: Any,
) -> Experiment:
    """The experiment of a model and its data, for recipes and for users alike; its training has default settings.

    The seed orders the training batches, also those of a named data set: mine(seed=1) and mine(seed=0) order them
    differently, and `gemminer mine --seed 1` orders them like mine(seed=1).

    Args:
        train, validation, test: data that `gemminer.data.as_batches` takes; with a step, batches of any kind.
        batch_size: the batch size for data sets and tensors; a DataLoader has its own.
        metric: the user's; by default accuracy where the loss is cross-entropy of classes, else minus the loss.
        ranks: the processes that share the work, all of which must call; each holds the first's weights afterwards.
        task: other fields of `Task`: loss or step, include, exclude, embeddings, engine, checkpoint, monitor.

    Raises:
        UsageError: not a model, not data, nothing to prune, an engine that cannot be.
    """

    require_numbers(model, to_train=True)
    by_step = _by_step(task, metric)
    batched = data.as_wholes if by_step else data.as_batches
    progress.checked(task.get("monitor", Monitor()))
    if ranks is not None and not ranks.first:
        task["monitor"] = Silent()
    if torch.get_default_device().type == "meta":
        raise UsageError(
            "new tensors are made on the meta device, which holds no numbers: torch.set_default_device('cpu')"
        )

    def held_out(given: Any) -> Batches | None:
        return None if given is None else batched(given, batch_size=batch_size, shuffle=False)

    batches = reseeded(batched(train, batch_size=batch_size), seed, "batches")
    task["accumulate"] = whole("accumulate, batches of a step,", task.get("accumulate", 1), least=1)
    made = Task(model, batches, held_out(validation), **task)
    made.prunable()
    checked_precision(made.precision, model, made.device)
    engine.checked(made.engine, made.device)
    first = next(iter(batches.epoch(0)), None)  # a user's loader may be slow to begin: it is asked once
    ways = feeds_of_step(model) if by_step else feeds_of_batch(model, first, made.loss is not cross_entropy)
    feed = looked_at(made, first, "training", ways)
    loss = output_loss if feed.own_loss else made.loss
    made, tested = dataclasses.replace(made, first=first, feed=feed, loss=loss), held_out(test)
    for what, part in (("validation", made.validation), ("test", tested)):
        if part is not None:
            looked_at(made, next(iter(part.epoch(0)), None), what, [made.feed])
    made = with_metric(made, metric, measured=validation is not None or test is not None)
    made = dataclasses.replace(made, channels_last=wants_channels_last(made))
    if ranks is not None:
        ranks.take_over(named_state(model).values())
        made = dataclasses.replace(made, train=sharded(batches, ranks), ranks=ranks)
    products = {name: p for name, p in named_parameters(model).items() if p.dim() > 1}
    experiment = Experiment(made, tested, Settings(), cost.count(made, products), seed, classes)
    if made.feed.floats:
        experiment.note(f"the inputs are whole numbers, which the model does not take: it gets them as {made.dtype}")
    if (text := modes_note(model, made.held or ())) is not None:
        experiment.note(text)
    return experiment
