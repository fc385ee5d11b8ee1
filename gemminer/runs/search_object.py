"""A search that anybody's training loop drives."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from gemminer import methods
from gemminer.core import numbers
from gemminer.core.errors import UsageError
from gemminer.core.fitting import require_numbers
from gemminer.core.holding import with_every_optimiser
from gemminer.core.masks import State
from gemminer.core.model_state import borrowed, named_state
from gemminer.core.names import named_parameters
from gemminer.core.prunable import find_prunable, train_only
from gemminer.core.selection import target
from gemminer.core.ticket import Ticket
from gemminer.methods.registry import Driven
from gemminer.runs import provenance
from gemminer.runs.keywords import of_method, takes
from gemminer.runs.settings import draw_of, options_of
from gemminer.runs.typed import MineOptions

_WHOSE = "the search moves scores, not weights: step the optimiser that `begin` returned, in place of your own"


class Search:
    """Find a ticket in a training loop of your own: its data, precision, accumulation and loss.

    The search moves scores, not weights: in the loop, its optimiser takes the place of yours.

        optimiser = search.begin(steps)       the model is at its drawn weights now, its scores in `optimiser`
        loss.backward()                       as often as you accumulate
        search.after_backward()               dL/dscore := dL/dw_eff * w, in place of the weights' gradients
        optimiser.step()
        search.after_step()                   w_eff of the next step; freezes what is due
        ticket = search.finish()              the model is as it was before `begin`

    With the same batches in the same order the masks are those of `gemminer.mine` with engine dense.

    Args:
        model: as in `gemminer.mine`; until `finish` its weights are the search's.
        density: fraction of prunable weights kept, above 0 and at most 1.
        method: gem-miner or edge-popup.
        seed: of the initial weights and the scores.
        initialiser: as in `gemminer.mine`.
        include: as in `gemminer.mine`.
        exclude: as in `gemminer.mine`.
        embeddings: as in `gemminer.mine`.
        options: the method's own, see `gemminer.methods.get(method).options`.

    Raises:
        UsageError: what cannot be, as in `gemminer.mine`; a method that is more than one loop; calls out of order; a
            step of another optimiser than the one that `begin` returned. A step that GradScaler skips is none.

    >>> import gemminer, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    >>> x = torch.randn(64, 4)
    >>> y = (x[:, 0] > 0).long()
    >>> search = gemminer.Search(net, density=0.25)
    >>> optimiser = search.begin(steps=40)
    >>> for _ in range(40):
    ...     torch.nn.functional.cross_entropy(net(x), y).backward()
    ...     search.after_backward()
    ...     optimiser.step()
    ...     search.after_step()
    >>> search.finish().kept
    24
    """

    @takes("gemminer.Search", of_method)
    def __init__(
        self,
        model: nn.Module,
        density: float,
        *,
        method: str = "gem-miner",
        seed: int = 0,
        initialiser: str = "default",
        include: str | Sequence[str] = (),
        exclude: str | Sequence[str] = (),
        embeddings: bool = False,
        **options: Unpack[MineOptions],
    ) -> None:
        self._row = methods.get(method)
        if self._row.drive is None:
            driven = ", ".join(name for name in methods.names() if methods.get(name).drive)
            raise UsageError(f"the method {method!r} is not one training, so no loop can drive it; these are: {driven}")
        self.density = numbers.fraction("density is the fraction of weights kept", density)
        self.seed = numbers.seed_of(seed)
        require_numbers(model, to_train=True)
        self.model, self._draw = model, draw_of(initialiser, self._row, self.density, self.seed)
        self._prunes: dict[str, Any] = {
            "include": list(numbers.strings("include", include)),
            "exclude": list(numbers.strings("exclude", exclude)),
            "embeddings": embeddings,
        }
        self._given = dict(options)
        self._options(1 if "freeze_every" not in options else None)
        target(self.density, sum(p.numel() for p in self._table().weights.values()))
        self._stack = contextlib.ExitStack()
        self._driven: Driven | None = None
        self._told = self.taken = 0
        self._ever = self._stepped = self._strayed = False  # what optimisers moved: the scores, since `after_backward`
        self._next = "begin"

    def __enter__(self) -> Search:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def begin(self, steps: int, epochs: int = 1) -> torch.optim.Optimizer:
        """Put the model at its initial weights and return the optimiser of the scores.

        Args:
            steps: optimiser steps of the whole search, on which schedules end.
            epochs: as many parts that these steps come in; only for schedules that speak of epochs (freeze_every).
        """
        self._expect("begin")
        steps, epochs = numbers.whole("steps", steps, least=1), numbers.whole("epochs", epochs, least=1)
        if steps % epochs:
            raise UsageError(f"{steps} steps are not {epochs} epochs of equal length: leave epochs out")
        self._told, self._part = steps, steps // epochs
        self._chosen = self._options(epochs)
        self._stack.enter_context(borrowed(self.model))
        try:
            self._set_up(None)
        except BaseException:
            self.end()
            raise
        self._next = "after_backward"
        assert self._driven is not None
        self._stack.callback(with_every_optimiser(self._meet, register_optimizer_step_post_hook).remove)
        self._optimiser = self._driven.settings.build(self._driven.rule.parameters())
        self._driven.rule.begin(self._optimiser)
        return self._optimiser

    def after_backward(self) -> None:
        """Turn the weights' gradients, maybe of several backward passes, into the scores', before a step."""
        self._expect("after_backward")
        assert self._driven is not None
        if self.taken == self._told:
            raise UsageError(f"the search was told of {self._told} steps, and this is one more: call finish")
        settings = self._driven.settings
        for group in self._optimiser.param_groups:
            group["lr"] = settings.lr_at(self.taken // self._part + self.taken % self._part / self._part)
        self._driven.rule.after_backward()
        if settings.max_norm is not None:
            nn.utils.clip_grad_norm_(self._driven.rule.parameters(), settings.max_norm)
        self._stepped = self._strayed = False
        self._next = "after_step"

    def after_step(self) -> None:
        """Write the weights of the next step into the model, once the optimiser has moved the scores."""
        self._expect("after_step")
        assert self._driven is not None
        if self._strayed and not self._stepped:
            raise UsageError(f"another optimiser has moved the model's weights: {_WHOSE}")
        self._driven.rule.after_step(self.taken)
        self.taken += 1
        if self.taken % self._part == 0:
            self._driven.rule.after_epoch(self.taken - 1, self.taken == self._told)
        self._next = "after_backward"

    def finish(self) -> Ticket:
        """The ticket; the model is put back as it was before `begin`."""
        self._expect("after_backward", "finish")
        assert self._driven is not None
        if self.taken and not self._ever:
            raise UsageError(f"no score has moved in {self.taken} steps: {_WHOSE}")
        facts = provenance.asked(self._row.name, self._chosen, self.seed, self.density)
        facts |= provenance.pruned(self._searched, **self._prunes)
        facts["epochs"] = self.taken / self._part
        if self.taken < self._told:
            note = f"the search was told of {self._told} steps and had {self.taken}: what was to come is cut at once"
            warnings.warn(note, stacklevel=2)
            facts["notes"] = [note]
            self._driven.rule.after_epoch(self._told - 1, True)
        found = self._driven.found(())
        ticket = provenance.ticket_of(found, self._initial, self._draw, None, facts)
        self.end()
        if warning := provenance.empty_layers(ticket, self._row):
            warnings.warn(warning.removeprefix("warning: "), stacklevel=2)
        return ticket

    def end(self) -> None:
        """Put the model back as it was before `begin`, without a ticket; after `finish` it does nothing."""
        self._stack.close()
        self._next = "nothing: the search is over"

    def state_dict(self) -> dict[str, Any]:
        """The search's state between two steps, for `load_state_dict`; the model's buffers are saved with the model."""
        self._expect("after_backward", "state_dict")
        assert self._driven is not None
        return {
            "of": self._identity(),
            "taken": self.taken,
            "initial": dict(self._initial),
            "rule": self._driven.rule.state_dict(),
            "optimiser": self._optimiser.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a search of the same arguments was, after `begin`; raises UsageError for another's state."""
        self._expect("after_backward", "load_state_dict")
        own = self._identity()
        other = state.get("of") if isinstance(state, Mapping) else None
        if not isinstance(other, Mapping) or set(other) != set(own):
            raise UsageError("this is not the state of a gemminer search")
        for name, value in own.items():
            if other[name] != value:
                raise UsageError(f"the state is of another search: its {name} is {other[name]}, not {value}")
        self._set_up(state["initial"])
        assert self._driven is not None
        rule, groups = self._driven.rule, self._optimiser.param_groups
        self._optimiser.state.clear()
        groups[0]["params"] = rule.parameters()
        rule.begin(self._optimiser)
        rule.load_state_dict(state["rule"])
        self._optimiser.load_state_dict(state["optimiser"])
        self.taken = int(state["taken"])
        self._ever = True  # before this

    def _meet(self, optimiser: torch.optim.Optimizer) -> None:
        """After a step of any optimiser of the process: whether it moves the scores, or the model's weights."""
        assert self._driven is not None
        moved = {id(p) for group in optimiser.param_groups for p in group["params"]}
        if any(id(score) in moved for score in self._driven.rule.parameters()):
            self._ever = self._stepped = True
        elif any(id(weight) in moved for weight in self.model.parameters()):
            self._strayed = True

    def _set_up(self, initial: Mapping[str, torch.Tensor] | None) -> None:
        """Begin at weights that are drawn, or at those of a state that was saved: buffers come with the model."""
        table = self._searched = self._table()
        shapes = {name: p.shape for name, p in table.weights.items()}
        drawn: Mapping[str, torch.Tensor] = {}
        if self._draw is not None and initial is None:
            drawn = self._draw.weights(shapes, table.layouts)
        tensors = named_state(self.model)
        with torch.no_grad():
            for name in drawn if initial is None else named_parameters(self.model):
                tensors[name].copy_((initial or drawn)[name])
        self._initial = State(named_state(self.model) if initial is None else initial)
        train_only(self.model, table)
        assert self._row.drive is not None
        self._driven = self._row.drive(table, self.density, self._chosen, self.seed, self._part)

    def _table(self) -> Any:
        return find_prunable(self.model, **self._prunes)

    def _options(self, epochs: int | None) -> Any:
        given = {**self._given, **({} if epochs is None else {"epochs": epochs})}
        return options_of(self._row.options, given, self._row.name)

    def _identity(self) -> dict[str, Any]:
        """What a state must agree in to be gone on with."""
        shapes = [(name, tuple(p.shape)) for name, p in self._searched.weights.items()]
        digest = hashlib.sha256(repr((shapes, self._chosen, self._prunes)).encode()).hexdigest()[:16]
        own = {"method": self._row.name, "density": self.density, "seed": self.seed, "steps": self._told}
        return {**own, "model and options": digest}

    def _expect(self, what: str, called: str = "") -> None:
        if self._next != what:
            raise UsageError(f"{called or what} is called out of order: next comes {self._next}")
