"""A ticket of what a search has found, and the facts that are written into it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gemminer.core.draw import Draw
from gemminer.core.layers import owned
from gemminer.core.masks import Masks, State
from gemminer.core.prunable import Prunable
from gemminer.core.ticket import Ticket
from gemminer.methods import Found, Method
from gemminer.runs import environment


def asked(method: str, options: Any, seed: int, density: float) -> dict[str, Any]:
    """What a search was asked for."""
    return {"method": method, "options": dataclasses.asdict(options), "seed": seed, "asked": density}


def pruned(table: Prunable, **prunes: Any) -> dict[str, Any]:
    """What a search might prune: the arguments include, exclude and embeddings, and what is known of the weights."""
    layouts = {name: facts for name, layout in table.layouts.items() if (facts := layout.as_json())}
    return {**prunes, "layouts": layouts, "left_dense": [dataclasses.asdict(one) for one in table.left]}


def ticket_of(
    found: Found, initial: State, draw: Draw | None, within: Mapping[str, Tensor] | None, facts: Mapping[str, Any]
) -> Ticket:
    """The ticket of what was found; `initial` is the state before the search, with weights of this draw."""
    masks = Masks(found.masks)
    own = {"realised": masks.density, "live": found.live, **found.facts}
    own["at_initialisation"] = found.draw_holds and "pretrain" not in facts
    if within is not None:
        own["within"] = sum(int(mask.sum()) for mask in within.values())
    start = initial if found.start is None else State(found.start)
    provenance = {**facts, **own, "versions": environment.versions()}
    return Ticket(masks, start, provenance, draw if found.draw_holds else None, within, found.removed)


def steps_behind(ticket: Ticket | None) -> int:
    """k, the steps of a training that the weights which a ticket starts from have behind them."""
    return int((ticket and ticket.provenance.get("rewind_step")) or 0)


def empty_layers(ticket: Ticket, row: Method) -> str | None:
    """A warning, with the method's remedy, where nothing is kept of a layer that was not removed."""
    empty = [layer.name for layer in ticket.per_layer() if layer.kept == 0 and not owned(layer.name, ticket.removed)]
    return "; ".join(filter(None, (f"warning: nothing is kept of {', '.join(empty)}", row.remedy))) if empty else None
