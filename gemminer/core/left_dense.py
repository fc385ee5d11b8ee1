"""The weights of two and more dimensions that a search leaves dense, and why: as facts and as a sentence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemminer.core.errors import GemminerError

NO_RULE, EMBEDDING, TIED, FROZEN, EXCLUDED = "no rule", "embedding", "tied to an embedding", "frozen", "excluded"
_MADE = "made by "
# Below this part of all weights of two and more dimensions nobody is told.
WORTH_SAYING = 0.1
_GROUPS = 4  # of a sentence

_WHAT_TO_DO = {
    NO_RULE: "no rule for this module; include={patterns} takes them in",
    EMBEDDING: "embeddings=True prunes them",
    TIED: "tied to an embedding; embeddings=True prunes them",
    FROZEN: "frozen; requires_grad_(True) makes them prunable",
    EXCLUDED: "excluded, as asked",
}


def parametrized(by: str) -> str:
    """The reason for a weight that PyTorch makes anew from other parameters."""
    return f"{_MADE}{by}"


@dataclass(frozen=True)
class LeftDense:
    """A parameter that a search leaves dense.

    Args:
        name: of the parameter.
        weights: how many it has.
        module: the type of its module.
        reason: "no rule", "embedding", "tied to an embedding", "frozen", "excluded", or "made by ..." for weights that
            PyTorch makes anew from this parameter.
    """

    name: str
    weights: int
    module: str
    reason: str

    @property
    def why(self) -> str:
        """The reason, and what takes the weight in."""
        return why(self.reason, [self.name])

    @property
    def pattern(self) -> str:
        """The name with a star for each number."""
        return re.sub(r"\d+", "*", self.name)


def why(reason: str, names: Sequence[str]) -> str:
    """A reason in words, and the option that takes weights with these names in."""
    if reason == f"{_MADE}prune":
        return "made by torch.nn.utils.prune: prune.remove it first, or take Ticket.from_prune(model)"
    if reason.startswith(_MADE):
        return f"{reason} from other parameters: remove that first"
    patterns = [repr(name) for name in dict.fromkeys(names)]
    text = patterns[0] if len(patterns) == 1 else f"[{', '.join(patterns[:2])}{', ...' if patterns[2:] else ''}]"
    return _WHAT_TO_DO.get(reason, reason).format(patterns=text)


@dataclass(frozen=True)
class Group:
    """Parameters of one type of module that stay dense for one reason."""

    module: str
    reason: str
    names: tuple[str, ...]
    patterns: tuple[str, ...]
    weights: int

    @property
    def why(self) -> str:
        return why(self.reason, self.patterns)

    def __str__(self) -> str:
        more = f" and {len(self.names) - 1} more" if self.names[1:] else ""
        return f"{self.module} {self.names[0]}{more} ({self.why})"


def groups(left: Iterable[LeftDense]) -> list[Group]:
    """Those of one type of module and one reason together, the largest first."""
    by: dict[tuple[str, str], list[LeftDense]] = {}
    for one in left:
        by.setdefault((one.module, one.reason), []).append(one)
    found = [
        Group(
            module,
            reason,
            tuple(one.name for one in members),
            tuple(dict.fromkeys(one.pattern if len(members) > 1 else one.name for one in members)),
            sum(one.weights for one in members),
        )
        for (module, reason), members in by.items()
    ]
    return sorted(found, key=lambda group: -group.weights)


def lines(left: Sequence[LeftDense], prunable: int) -> list[str]:
    """A line on how much stays dense, and one for each group; none where nothing does.

    >>> lines([LeftDense("e", 50, "Embedding", "embedding")], 150)
    ['left dense: 50 of 200 weights of two and more dimensions (25.0%)', '  Embedding e (embeddings=True prunes them)']
    """
    if not left:
        return []
    dense = sum(one.weights for one in left)
    head = f"left dense: {dense} of {dense + prunable} weights of two and more dimensions ({share(left, prunable):.1%})"
    return [head, *(f"  {group}" for group in groups(left))]


def listed(left: Sequence[LeftDense]) -> str:
    """The largest groups in words, each with what takes it in."""
    found = groups(left)
    words = [str(group) for group in found[:_GROUPS]]
    rest = sum(len(group.names) for group in found[_GROUPS:])
    return ", ".join([*words, f"{rest} more"] if rest else words)


def share(left: Iterable[LeftDense], prunable: int) -> float:
    """The part of all weights of two and more dimensions that stays dense."""
    dense = sum(one.weights for one in left)
    return dense / (dense + prunable) if dense else 0.0


def sentence(left: Sequence[LeftDense], prunable: int) -> str | None:
    """What a run says about the weights it leaves dense; None where they are no more than a tenth."""
    part = share(left, prunable)
    if part <= WORTH_SAYING:
        return None
    return f"{part:.1%} of the weights of two and more dimensions stay dense: {listed(left)}"


def parsed(given: Any) -> tuple[LeftDense, ...]:
    """The rows of a ticket's facts; raises GemminerError where they are none."""
    kinds = {"name": str, "weights": int, "module": str, "reason": str}
    rows = given if isinstance(given, list) else [given]
    for row in rows:
        if not isinstance(row, Mapping) or row.keys() != kinds.keys():
            break
        if any(type(row[key]) is not kind for key, kind in kinds.items()) or row["weights"] < 0:
            break
    else:
        return tuple(LeftDense(**row) for row in rows)
    raise GemminerError("its list of the weights left dense is damaged")
