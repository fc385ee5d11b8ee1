"""The steps of a run: find, before, train, check. Each leaves the model as it was; recipes and users share them."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from gemminer import checks, cost, engine, methods, record
from gemminer.checks import Check
from gemminer.data import Batches
from gemminer.errors import GemminerError, UsageError, unknown
from gemminer.initialise import Draw, mixed
from gemminer.masking import Dense, KeepMask, borrowed, prunable
from gemminer.recipe import explain
from gemminer.task import Task, evaluate, measure, recalibrate
from gemminer.ticket import Ticket, named_state
from gemminer.train import Settings, fit, private_randomness

T = TypeVar("T")


def options_of(kind: type[T], fields: Mapping[str, Any], where: str) -> T:
    """A dataclass of settings from plain fields; raises UsageError with one sentence that names the field at fault."""
    known = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in fields:
        if name not in known:
            raise unknown(f"option of {where}", name, known)
    adapter = TypeAdapter(kind)
    try:
        return adapter.validate_python(dict(fields))
    except ValidationError as error:
        raise UsageError(explain(error, where)) from None


def default_epochs(examples: int) -> int:
    """Epochs where none are asked for: 40 on small data, fewer as it grows (11 on 54,000 examples), at least 5."""
    return max(5, min(40, round(600_000 / max(1, examples))))


def device_of(name: str) -> torch.device:
    """The device of this name; "auto" is a GPU if there is one. Raises UsageError for one this machine lacks."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "meta":
        raise UsageError("device 'meta' holds no numbers to compute with: use cpu, cuda, cuda:1 or auto")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UsageError(f"device {name!r} is not on this machine: use cpu, cuda, cuda:1 or auto") from None
    return device


def wants_channels_last(task: Task) -> bool:
    """Whether batches of images should be laid out channels-last: up to 1.7x faster convolutions on a CPU.

    Tried forwards and backwards on a borrowed model, for one that flattens with `view` cannot take it: on eight
    examples, and on the whole first batch if that fails, since a model may take batches of one size only.
    """
    if not any(isinstance(module, nn.Conv2d) for module in task.model.modules()):
        return False
    trial = dataclasses.replace(task, channels_last=True)
    inputs, targets = next(iter(task.train.epoch(0)))
    tries = [(inputs, targets)]
    if isinstance(inputs, Tensor) and isinstance(targets, Tensor) and inputs.shape[:1] == targets.shape[:1]:
        tries.insert(0, (inputs[:8], targets[:8]))
    for some in tries:
        with borrowed(task.model), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            try:
                trial.loss_of(*some).backward()
            except (RuntimeError, GemminerError):
                continue
            return True
    return False


def reseeded(batches: Batches, *keys: object) -> Batches:
    """The same batches in the order of another seed, where they have one."""
    if not hasattr(batches, "seed"):
        return batches
    other = copy.copy(batches)
    other.seed = mixed(*keys)
    return other


def draw_of(name: str | None, method: methods.Method, density: float, seed: int) -> Draw | None:
    """The draw of an initialiser's name: "default" (or None) is the method's own, "keep" none at all."""
    if name == "keep":
        return None
    if name in (None, "default"):
        return Draw(method.initialiser, seed, density if method.fan_scaled else 1.0)
    return Draw(name, seed)


def require_test(batches: Batches | None) -> Batches:
    """The test batches, or UsageError where there are none."""
    if batches is None:
        raise UsageError("there is no test data to measure on: pass test_data")
    return batches


def copied(model: nn.Module) -> dict[str, Tensor]:
    """The model's state, detached from it."""
    return {name: tensor.detach().clone() for name, tensor in named_state(model).items()}


@dataclass
class Workbench:
    """A model and its data, with the steps of a run as functions: each leaves the model as it was.

    Args:
        task: what methods may see.
        test: the test batches; only `evaluate` reads them.
        settings: how a ticket is trained.
        seed: the run's; training seed i is derived from it.
        classes: their names, if the data has any.
    """

    task: Task
    test: Batches | None
    settings: Settings
    seed: int = 0
    classes: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    _flops: dict[tuple[str, ...], cost.Flops] = field(default_factory=dict)

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.task.monitor.note(text)

    def find(self, method: str, density: float, options: Any, draw: Draw | None) -> tuple[Ticket, dict[str, Any]]:
        """Search for a ticket from weights drawn by `draw` (None: the model's own); returns it and the cost."""
        model = self.task.model
        begun = time.monotonic()
        with borrowed(model):
            parameters = prunable(model, exclude=self.task.exclude, embeddings=self.task.embeddings)
            if draw is not None:
                weights = draw.weights({name: p.shape for name, p in parameters.items()})
                with torch.no_grad():
                    for name, p in parameters.items():
                        p.copy_(weights[name])
            found = methods.get(method).find(self.task, density, options, self.seed)
        facts = found.provenance
        rows = facts.pop("rows", [])
        live = facts.pop("live", None)
        seconds = rows[-1]["seconds"] if rows else time.monotonic() - begun
        ticket = Ticket(
            found.masks,
            found.initial,
            {
                "method": method,
                "options": dataclasses.asdict(options),
                "seed": self.seed,
                "asked": density,
                "realised": found.density,
                "live": live,
                "exclude": list(self.task.exclude),
                "embeddings": self.task.embeddings,
                **facts,
                "versions": record.versions(),
            },
            draw if facts.get("at_initialisation", True) else None,
        )
        hint = "; the option floor=1 keeps a weight in each layer" if hasattr(options, "floor") else ""
        if empty := [layer.name for layer in ticket.per_layer() if layer.kept == 0]:
            self.note(f"warning: nothing is kept of {', '.join(empty)}{hint}")
        epochs = facts.get("epochs", len(rows))
        return ticket, {
            "live": live,
            "cost": self._cost(ticket.masks, epochs, seconds, rows),
        }

    def affordable(self, seconds: float) -> int:
        """Epochs of a search that take about `seconds` at the pace of plain training, which is the slowest of it."""
        task, rule = self.task, Dense(self.task.model)
        batch = next(iter(task.train.epoch(0)))
        times = []
        with borrowed(task.model), private_randomness():
            task.model.train()
            for _ in range(5):
                begun = time.monotonic()
                task.loss_of(*batch).backward()
                rule.after_step(0)
                times.append(time.monotonic() - begun)
        epochs = int(seconds / (min(times) * len(task.train)))
        if epochs < 1:
            self.note(f"warning: an epoch takes longer than the budget of {seconds:g} seconds: the search has one")
        return max(1, epochs)

    def before(self, ticket: Ticket) -> float:
        """accuracy.before: the masked network at its initial weights, batch-norm statistics re-estimated."""
        model = self.task.model
        with borrowed(model):
            ticket.apply(model)
            recalibrate(self.task)
            return evaluate(self.task, require_test(self.test))

    def train(
        self, ticket: Ticket | None, index: int, phase: str, keep: Callable[[nn.Module], None] | None = None
    ) -> dict[str, Any]:
        """Train from a ticket (None: the dense network) with training seed `index`; test once, at the end.

        `keep` is called with the trained model before it is given back.
        """
        model = self.task.model
        train_batches = reseeded(self.task.train, self.seed, "training batches", index)
        task = dataclasses.replace(self.task, train=train_batches)
        with borrowed(model):
            rule, net = Dense(model), None
            if ticket is not None:
                ticket.apply(model)
                net = engine.kept_only(task, ticket.masks)
                rule = KeepMask(model, ticket.masks) if net is None else Dense(net)
                task = task if net is None else dataclasses.replace(task, model=net)
            rows = fit(task, rule, self.settings, seed=mixed(self.seed, "training", index), phase=phase)
            test, classes = measure(task, self.test) if self.test else (None, None)
            result: dict[str, Any] = {"test": test, "classes": classes, "validation": rows[-1]["validation"]}
            if keep:
                engine.write_back(net, model)
                keep(model)
        masked = ticket.masks if ticket else ()
        kept = {"layers_kept": [ticket.masks.kept(name) for name in masked]} if ticket else {}
        result["cost"] = self._cost(masked, len(rows), rows[-1]["seconds"], [kept] * len(rows))
        return result

    def _cost(
        self, masked: Iterable[str], epochs: float, seconds: float, rows: Sequence[Mapping[str, Any]]
    ) -> dict[str, float]:
        """FLOPs of `epochs` epochs of training steps; counting zeros with the weights each row's epoch kept.

        A row may be a `fraction` of an epoch; what no row with kept weights covers counts as dense.
        """
        parameters = dict(self.task.model.named_parameters())
        sizes = {name: parameters[name].numel() for name in masked}
        key = tuple(sizes)
        if key not in self._flops:
            self._flops[key] = cost.count(self.task, {name: parameters[name] for name in sizes})
        flops, passes = self._flops[key], cost.TRAINING_PASSES * self.task.train.examples
        dense = passes * flops.dense
        known = [(row["layers_kept"], row.get("fraction", 1.0)) for row in rows if "layers_kept" in row]
        sparse = [
            part * passes * flops.sparse({n: k / s for (n, s), k in zip(sizes.items(), kept, strict=True)})
            for kept, part in known
        ]
        sparse.append(dense * max(0.0, epochs - math.fsum(part for _, part in known)))
        return {
            "epochs": epochs,
            "seconds": seconds,
            "flops_dense": dense * epochs,
            "flops_sparse": math.fsum(sparse),
        }


def counterpart(bench: Workbench, name: str, ticket: Ticket, index: int) -> Ticket:
    """What the ticket is compared with in check `name`, for training seed `index`: as many weights, same start.

    The inversion is one ticket for all seeds: the ticket's own search, its ranking upside down.
    """
    seed = mixed(bench.seed, "check", index)
    if name == "shuffle":
        return checks.shuffle(ticket, seed)
    if name == "reinit":
        return checks.reinit(ticket, seed)
    facts = ticket.provenance
    method = facts.get("method") if name == "invert" else name
    if method not in methods.names():
        raise UsageError(f"the check {name!r} needs to know the ticket's method, which is {method!r}")
    options = dict(facts.get("options", {}), invert=True) if name == "invert" else {}
    chosen = options_of(methods.get(method).options, options, method)
    task = dataclasses.replace(bench.task, phase=f"check:{name}:search")
    with borrowed(task.model) as model:
        _start_from(model, ticket)
        find = methods.get(method).find
        asked = facts["asked"] if name == "invert" else ticket.density
        found = find(task, asked, chosen, facts.get("seed", bench.seed) if name == "invert" else seed)
    return ticket.with_(masks=found.masks, check=name)


def _start_from(model: nn.Module, ticket: Ticket) -> None:
    ticket.check_fits(model)
    tensors = named_state(model)
    with torch.no_grad():
        for name, value in ticket.initial.items():
            tensors[name].copy_(value)


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """The checks asked for, each once; raises UsageError for one that does not exist."""
    for name in names:
        if name not in checks.CHECKS:
            raise unknown("check", name, checks.CHECKS)
    return tuple(dict.fromkeys(names))


@dataclass(frozen=True)
class Verdict:
    """The outcome of `check`: overall "pass", "fail" or "not decided", and each check's figures by name."""

    verdict: checks.Verdict
    checks: dict[str, Check]

    def __str__(self) -> str:
        lines = [f"{self.verdict}: training from the ticket against training from what is left of it"]
        for name, c in self.checks.items():
            lines.append(
                f"  {name:<8} {c.mean:.4f} +- {c.std:.4f}  ticket better by {c.difference:+.4f}"
                f" +- {c.difference_std:.4f}  (n={c.n})  {c.verdict}"
            )
        return "\n".join(lines)


Step = Callable[[str, Callable[[], dict[str, Any]]], dict[str, Any]]


def judge(
    bench: Workbench,
    ticket: Ticket,
    own: Sequence[float],
    names: Sequence[str],
    step: Step = lambda name, work: work(),
    inverted: Path | None = None,
) -> Verdict:
    """Run the checks `names` against the ticket's own metrics, one step for each training.

    `inverted` is where the inversion's ticket is kept, so that a resumed run need not search for it again.
    """
    found: dict[str, Check] = {}
    for name in names:
        others: list[Ticket] = []
        if name == "invert":
            held: list[Ticket] = []

            def invert(held: list[Ticket] = held) -> dict[str, Any]:
                held.append(counterpart(bench, "invert", ticket, 0))
                if inverted is not None:
                    held[0].save(inverted)
                return {"digest": held[0].digest}

            step("check:invert:search", invert)
            others = (held or [Ticket.load(inverted or "")]) * len(own)
        values = []
        for i in range(len(own)):

            def work(name: str = name, i: int = i, others: list[Ticket] = others) -> dict[str, Any]:
                other = others[i] if others else counterpart(bench, name, ticket, i)
                trained: dict[str, Any] = bench.train(other, i, f"check:{name}:{i}")
                return trained

            values.append(step(f"check:{name}:{i}", work)["test"])
        found[name] = checks.compare(own, values)
    return Verdict(checks.overall(list(found.values())), found)
