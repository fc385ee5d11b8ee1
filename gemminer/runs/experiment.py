"""An experiment: a model and its data, with the steps of a run (find, before, train) as functions.

Each step leaves the model as it was. Recipes and users' own models share these steps; those of checks are in `checks`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from gemminer import methods
from gemminer.core import left_dense
from gemminer.core.draw import Draw
from gemminer.core.errors import GemminerError, UsageError, cause
from gemminer.core.layers import Shortened
from gemminer.core.masks import Masks, State
from gemminer.core.model_state import borrowed, gradients, named_state
from gemminer.core.numbers import strings
from gemminer.core.prunable import Prunable
from gemminer.core.randomness import mixed, private_randomness
from gemminer.core.selection import target
from gemminer.core.ticket import Ticket
from gemminer.data import Batches
from gemminer.data.fingerprint import digest
from gemminer.methods.inside import check_within, find_inside, zeros_of
from gemminer.runs import identity, provenance
from gemminer.training import cost, engine, length, rate
from gemminer.training.evaluate import mean_metric, measure, recalibrate
from gemminer.training.feed import reason
from gemminer.training.loop import fit
from gemminer.training.precision import remark
from gemminer.training.rules import Dense, KeepMask
from gemminer.training.settings import Settings
from gemminer.training.shards import Joined, reseeded
from gemminer.training.task import Task

# Default batch size of recipes and calls, as in the papers' CIFAR settings.
BATCH_SIZE = 128


def require_test(batches: Batches | None) -> Batches:
    """The test batches, or UsageError where there are none."""
    if batches is None:
        raise UsageError("there is no test data to measure on: pass test_data")
    return batches


@dataclass(frozen=True)
class Start:
    """The weights that a pre-training came to, from which a search starts.

    Args:
        state: parameters and buffers.
        steps: k, the steps of a training that they have behind them.
        facts: of the pre-training, for the ticket.
    """

    state: Mapping[str, Tensor]
    steps: int
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Experiment:
    """A model and its data, with the steps of a run as functions: each leaves the model as it was.

    `build` makes one. It never changes; a step with another checkpoint or monitor has another experiment, from
    `with_task`.

    Args:
        task: the model, the data and the loss that methods may see.
        test: the test batches; only `before` and `train` read them.
        settings: the settings of a ticket's training.
        seed: the seed of the run; training seed i is derived from it.
        classes: the names of the classes, if the data has any.
        flops: FLOPs of a forward pass of one example, counted once, by parameter.
    """

    task: Task
    test: Batches | None
    settings: Settings
    flops: cost.Flops
    seed: int = 0
    classes: tuple[str, ...] = ()

    @property
    def notes(self) -> list[str]:
        """Warnings and remarks for a person, in order."""
        return self.task.notes

    def with_task(self, **changes: Any) -> Experiment:
        """The same experiment with other fields of its task; both share their notes."""
        return dataclasses.replace(self, task=dataclasses.replace(self.task, **changes))

    def note(self, text: str) -> None:
        self.task.note(text)

    def check_density(self, density: float) -> None:
        """Raise UsageError for an invalid density, or one that keeps no weight."""
        table = self.task.table()
        target(density, sum(p.numel() for p in table.weights.values()))
        if self.task.within is not None:
            check_within(self.task.within, table, density)

    @gradients()
    def search(
        self,
        method: str,
        density: float,
        options: Any,
        draw: Draw | None,
        keep: Callable[[Ticket], object],
        seconds: float | None = None,
        start: Start | None = None,
        **facts: Any,
    ) -> dict[str, Any]:
        """Search for a ticket from weights drawn by `draw` (None: the model's own); returns its digest and cost.

        Args:
            keep: called with the ticket.
            seconds: the time that the search may take, instead of the options' epochs.
            start: the weights of a pre-training, which the search keeps; `draw` is what that began with.
            facts: further facts for the ticket's provenance.
        """
        row = methods.get(method)
        if said := self._left_dense():
            self.note(said)
        begun, noted = time.monotonic(), len(self.notes)
        self._say_precision()
        lent, draw_kept = self._begun(start), None if start else draw
        with self.drawn(draw, start) as table:
            initial = State(named_state(self.task.model))
            within = self.task.within if start else self._within(table, density, draw)
            with lent.claimed(identity.of_search, method, density, options, self.seed, seconds):
                if seconds is not None:
                    options = dataclasses.replace(options, epochs=lent._epochs_in(seconds))
                # A method that does not train never asks, and choosing may mean to time this machine's kernels first.
                task = lent.with_engine().task if row.trains else lent._looking()
                found = find_inside(row, dataclasses.replace(task, within=within), density, options, self.seed)
        seconds = found.rows[-1]["seconds"] if found.rows else time.monotonic() - begun
        epochs = _covered(found.rows) if found.epochs is None else found.epochs
        prunes = {name: list(strings(name, getattr(self.task, name))) for name in ("include", "exclude")}
        known = provenance.asked(method, options, self.seed, density)
        known |= {"precision": self.task.precision, "accumulate": self.task.accumulate}
        known |= provenance.pruned(table, **prunes, embeddings=self.task.embeddings) | {"epochs": epochs, **facts}
        known |= {"notes": self.notes[noted:]} if self.notes[noted:] else {}
        known |= {"pretrain": dict(start.facts), "rewind_step": start.steps} if start else {}
        ticket = provenance.ticket_of(found, initial, draw_kept, within, known)
        if warning := provenance.empty_layers(ticket, row):
            self.note(warning)
        self._agree(ticket.digest, "tickets")
        keep(ticket)
        tries = self._tries(found.rows)
        spent = self._cost(ticket.masks, epochs + _covered(tries), seconds, [*found.rows, *tries])
        return {"live": found.live, "cost": {**spent, "epochs": epochs}, "digest": ticket.digest}

    @contextlib.contextmanager
    def drawn(self, draw: Draw | None, start: Start | None = None) -> Iterator[Prunable]:
        """The model with its prunable weights drawn by `draw` (None: its own), and the table of them.

        With a start, all of its parameters and buffers are that.
        """
        with borrowed(self.task.model):
            table = self.task.table()
            if start is not None:
                with torch.no_grad():
                    for name, tensor in named_state(self.task.model).items():
                        tensor.copy_(start.state[name])
            elif draw is not None:
                weights = draw.weights({name: p.shape for name, p in table.weights.items()}, table.layouts)
                with torch.no_grad():
                    for name, p in table.weights.items():
                        p.copy_(weights[name])
            yield table

    def what_search(
        self,
        method: str,
        density: float,
        options: Any,
        draw: Draw | None,
        seconds: float | None = None,
        start: Start | None = None,
    ) -> dict[str, str]:
        """What a call of `search` with these arguments is, in texts by name."""
        with self.drawn(draw, start):
            return identity.of_search(self._begun(start).task, method, density, options, self.seed, seconds)

    def _begun(self, start: Start | None) -> Experiment:
        """The same, its weights those of a start."""
        return self if start is None else self.with_task(begun=start.steps)

    def what_training(self, ticket: Ticket) -> dict[str, str]:
        """What all trainings of a ticket, and what is measured of them, are of, in texts by name."""
        with borrowed(self.task.model, as_trained=True) as model:
            ticket.fitted(model).apply(model)
            of = identity.of_training(self.task, ticket, self.settings, self.seed, 0, "")
        return of | {"the metric": identity.called(self.task.metric), **identity.data_of(self.test, "the test data")}

    def claimed(self, of: Callable[..., dict[str, str]], *what: Any) -> contextlib.AbstractContextManager[None]:
        """The task's checkpoint, if it has one, held as one of this.

        Raises UsageError where it is another's, or where another rank was called with other arguments.
        """
        checkpoint, ranks = self.task.checkpoint, self.task.ranks
        if checkpoint is None and ranks is None:
            return contextlib.nullcontext()
        call = of(self.task, *what)
        if ranks is not None:
            identity.same_call(ranks.gathered(call))
        return contextlib.nullcontext() if checkpoint is None else checkpoint.claimed(call)

    def with_engine(self) -> Experiment:
        """The same, its layers chosen that compute kept weights only: as the checkpoint says, if there is one."""
        return self if self.task.below is not None else self.with_task(below=engine.resumed(self.task, self.flops))

    def _looking(self) -> Task:
        """The task of a method that takes no steps: every rank looks at the global batches, and none waits."""
        if self.task.ranks is None:
            return self.task
        joined = Joined(cast(Any, self.task.train), self.task.ranks)
        return dataclasses.replace(self.task, train=joined, ranks=None)

    def _agree(self, digest: str, what: str) -> None:
        """Raise GemminerError unless all ranks have come to the same."""
        if self.task.ranks is not None and len(set(self.task.ranks.gathered(digest))) > 1:
            raise GemminerError(
                f"the ranks came to different {what}: their model, data or loss must differ by more than the batches; "
                "see that all draw from equal seeds"
            )

    @property
    def writes(self) -> bool:
        """Whether this process writes the run's files: of several ranks the first."""
        return self.task.ranks is None or self.task.ranks.first

    def _epochs_in(self, seconds: float) -> int:
        """The epochs that fit in so many seconds: measured once, even if resumed."""
        checkpoint = self.task.checkpoint
        if checkpoint is None:
            return self.affordable(seconds)
        state = checkpoint.load() or {}
        with checkpoint.restoring():
            known = int(state.get("epochs_in_budget") or 0)
        checkpoint.also["epochs_in_budget"] = epochs = known if known > 0 else self.affordable(seconds)
        return epochs

    def _within(self, table: Prunable, density: float, draw: Draw | None) -> Mapping[str, Tensor] | None:
        """The masks inside which the search stays: those asked for, or the zeros of a pruned model that is kept."""
        if self.task.within is not None or draw is not None:
            return self.task.within
        masks = zeros_of(table)
        if masks is None:
            return None
        total, others = sum(m.numel() for m in masks.values()), sum(int(m.sum()) for m in masks.values())
        zeros = f"{total - others} prunable weights of the model are exactly zero"
        if (count := target(density, total)) > others:
            self.note(f"{zeros}, and density {density:g} keeps {count} of {total}: it is searched among the zeros too")
            return None
        self.note(f"{zeros} and stay so: it is searched among the others")
        return masks

    def _say_precision(self) -> None:
        if said := remark(self.task.precision, self.task.device):
            self.note(said)

    def _left_dense(self) -> str | None:
        """What is said about the weights of two and more dimensions that no ticket can remove."""
        table = self.task.table()
        return left_dense.sentence(table.left, sum(p.numel() for p in table.weights.values()))

    def affordable(self, seconds: float) -> int:
        """Epochs of a search that fit in about `seconds` at the pace of plain training, a search's slowest."""
        ranks = self.task.ranks
        return self._affordable(seconds) if ranks is None else ranks.firsts(lambda: self._affordable(seconds))

    @gradients()
    def _affordable(self, seconds: float) -> int:
        task, rule = self.task, Dense(self.task.model)
        batch = task.first_batch()
        times = []
        with borrowed(task.model), private_randomness():
            task.train_mode()
            for _ in range(5):
                begun = time.monotonic()
                try:
                    task.loss_of(*batch).backward()
                except GemminerError:
                    raise
                except Exception as error:  # whatever a user's model raises
                    raise GemminerError(f"the model fails in a training step: {reason(error)}") from cause(error)
                rule.after_step(0)
                times.append(time.monotonic() - begun)
        epochs = int(seconds / (min(times) * self._batches(seconds / 10)))
        if epochs < 1:
            self.note(f"warning: an epoch takes longer than the budget of {seconds:g} seconds: the search has one")
        return max(1, epochs)

    def _batches(self, seconds: float) -> int:
        """The batches that come in an epoch, if so many seconds are enough to see; else those that are promised."""
        train, until = self.task.train, time.monotonic() + seconds
        for count, _ in enumerate(train.epoch(0), 1):
            if time.monotonic() > until:
                return max(count, len(train))
        return count

    @gradients()
    def before(self, ticket: Ticket) -> float:
        """accuracy.before: the masked network at its initial weights, batch-norm statistics re-estimated."""
        model = self.task.model
        with borrowed(model):
            ticket.apply(model)
            with Shortened(model, ticket.fitted(model).removed):
                recalibrate(self.task)
                return mean_metric(self.task, require_test(self.test))

    @gradients()
    def train(
        self, ticket: Ticket | None, index: int, phase: str, keep: Callable[[nn.Module], object] | None = None
    ) -> dict[str, Any]:
        """Train from a ticket (None: the dense network) with training seed `index`; test once, at the end.

        A ticket that starts from the weights of step k of a training is trained for the T - k steps that are left of
        this one, from position k of its schedule on. `keep` is called with the trained model, before the model is
        restored.
        """
        self._say_precision()
        model = self.task.model
        train_batches = reseeded(self.task.train, self.seed, "training batches", index)
        epochs, begun = self.settings.epochs, provenance.steps_behind(ticket)
        first, over = self.task.position(begun, epochs)
        if begun:
            left = f"{epochs * self.task.steps - begun} of {epochs * self.task.steps}"
            self.note(f"the ticket starts from step {begun} of a training: it is trained for the {left} steps after it")
        with borrowed(model, as_trained=True), contextlib.ExitStack() as stack:
            rule, net = Dense(model), None
            if ticket is not None:
                ticket = ticket.fitted(model)
                ticket.apply(model)
            stack.enter_context(self.claimed(identity.of_training, ticket, self.settings, self.seed, index, phase))
            task = self.with_engine().task if ticket is not None else self.task
            task = dataclasses.replace(task, train=train_batches)
            cut = stack.enter_context(Shortened(model, ticket.removed if ticket else ()))
            if ticket is not None:
                own = ticket.shortened().masks
                net = engine.kept_only(task, own)
                rule = KeepMask(model, own) if net is None else Dense(net)
                task = task if net is None else dataclasses.replace(task, model=net)
            seed = mixed(self.seed, "training", index)
            rows = fit(task, rule, self.settings, seed=seed, phase=phase, first_epoch=first, first_step=over)
            if task.ranks is not None:
                self._agree(digest(sorted(named_state(task.model).items())), "weights")
            if keep:  # before anything is measured: a metric may fail, and what was trained is not lost
                engine.write_back(net, model)
                with cut.whole():
                    keep(model)
            test, classes = measure(task, self.test) if self.test else (None, None)
            result: dict[str, Any] = {"test": test, "classes": classes, "validation": rows[-1]["validation"]}
            result["rate"] = rows[0].get("rate") or rate.given(self.settings)
        kept = {"layers_kept": list(map(ticket.masks.kept, ticket.masks))} if ticket else {}
        masks = ticket.masks if ticket else Masks({})
        if index == 0 and not phase.startswith("check:") and (said := length.short(rows, self.task.metric_name)):
            self.note(said)
        each = [{**kept, "fraction": row.get("fraction", 1.0)} for row in [*rows, *self._tries(rows)]]
        spent = self._cost(masks, _covered(each), rows[-1]["seconds"], each)
        result["cost"] = {**spent, "epochs": epochs - begun / self.task.steps if begun else len(rows)}
        return result

    def _tries(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """A row for each rate that was found before one of these: the trials, as a fraction of an epoch."""
        return [{**row, "fraction": row["rate"]["steps"] / max(1, self.task.steps)} for row in rows if row.get("rate")]

    def dense_cost(self, epochs: float, seconds: float) -> dict[str, float]:
        """Cost of so many epochs of the dense network."""
        return self._cost(Masks({}), epochs, seconds, [])

    def _cost(self, masks: Masks, epochs: float, seconds: float, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Cost of `epochs` epochs: FLOPs of all weights, and FLOPs of the weights that each row's epoch kept.

        A row may be a `fraction` of an epoch; epochs without a row of kept weights count as dense.
        """
        passes = cost.TRAINING_PASSES * self.task.train.examples
        dense = passes * self.flops.dense
        sizes = {name: math.prod(masks.shape(name)) for name in masks}
        known = [(row["layers_kept"], row.get("fraction", 1.0)) for row in rows if "layers_kept" in row]
        sparse = [
            part * passes * self.flops.sparse({n: k / s for (n, s), k in zip(sizes.items(), kept, strict=True)})
            for kept, part in known
        ]
        sparse.append(dense * max(0.0, epochs - math.fsum(part for _, part in known)))
        return {
            "epochs": epochs,
            "seconds": seconds,
            "flops_dense": dense * epochs,
            "flops_sparse": math.fsum(sparse),
        }


def _covered(rows: Sequence[Mapping[str, Any]]) -> float:
    """The epochs that rows cover, as long as the data promises one to be."""
    epochs = math.fsum(row.get("fraction", 1.0) for row in rows)
    return int(epochs) if epochs == int(epochs) else epochs
