"""What a ticket's file says beside its tensors: refused where it has other types than a ticket writes."""

from __future__ import annotations

import math
from typing import Any

from gemminer.core.errors import GemminerError


def sizes(shape: Any) -> tuple[int, ...]:
    """A shape of a file; GemminerError where it is none, or larger than any tensor."""
    found = tuple(shape)
    if not all(type(n) is int and n >= 0 for n in found) or math.prod(found) >= 2**62:
        raise GemminerError(f"it is a damaged ticket: {found!s:.50} is no shape")
    return found


def check_facts(facts: Any) -> None:
    """Raise GemminerError unless a file's provenance has the types of a ticket's."""
    kinds = {"method": str, "options": dict, "include": list, "exclude": list, "embeddings": bool}
    if not isinstance(facts, dict):
        raise GemminerError("it is a damaged ticket: its provenance is no JSON object")
    for name, kind in kinds.items():
        if not isinstance(facts.get(name, kind()), kind):
            raise GemminerError(f"it is a damaged ticket: its {name} is no {kind.__name__}")
    for name in ("include", "exclude"):
        if not all(isinstance(pattern, str) for pattern in facts.get(name, ())):
            raise GemminerError(f"it is a damaged ticket: its {name} is no list of names")
