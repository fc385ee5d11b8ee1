"""Scores of examples, and which examples they choose."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gemminer.core.errors import GemminerError, UsageError, in_words, unknown
from gemminer.core.files import as_path, atomic, read_json
from gemminer.core.html import table
from gemminer.core.numbers import whole
from gemminer.core.randomness import generator

FORMAT = "gemminer.scores/1"
Kind = Literal["el2n", "forgetting", "loss"]
Which = Literal["easiest", "hardest", "random", "all"]


def chosen(
    count: int, which: str, values: Tensor, classes: Tensor | None, balanced: bool = True, seed: int = 0
) -> Tensor:
    """The indices of `count` examples in ascending order, ties by chance: see `Scores.choose`."""
    if which not in get_args(Which):
        raise unknown("choice of examples", which, get_args(Which))
    if which == "all":
        return torch.arange(len(values))
    count = whole("count, the examples to choose,", count, least=1)
    if count > len(values):
        raise UsageError(f"count, the examples to choose, is {count}, and there are {len(values)}")
    order = torch.randperm(len(values), generator=generator(seed, "choice of examples"))
    if which != "random":
        order = order[values[order].argsort(stable=True, descending=which == "hardest")]
    if not balanced or classes is None:
        return order[:count].sort().values
    of = classes[order]
    names, sizes = of.unique(return_counts=True)
    shares = _shares(count, sizes.tolist())
    return torch.cat([order[of == name][:n] for name, n in zip(names, shares, strict=True)]).sort().values


def _shares(count: int, sizes: list[int]) -> list[int]:
    """How many of each class: count // classes each, as far as there are, and what is left one each over the others.

    >>> _shares(7, [2, 9, 9]), _shares(8, [1, 9, 9])
    ([2, 3, 2], [1, 4, 3])
    """
    shares = [0] * len(sizes)
    while (left := count - sum(shares)) > 0:
        open_ = [i for i, size in enumerate(sizes) if shares[i] < size]
        each = max(1, left // len(open_))
        for i in open_[: max(1, left) if left < len(open_) else None]:
            shares[i] += min(each, sizes[i] - shares[i], count - sum(shares))
    return shares


@dataclass(frozen=True, eq=False)
class Scores:
    """A score of each training example, low = easy: what `gemminer.scores` returns and pre-training chooses by.

    Args:
        each: (runs, examples), the scores by each network that was trained for them.
        kind: "el2n", "forgetting" or "loss".
        epochs: passes over the data before an example was scored.
        seed: of the runs.
        data: which examples were scored, in a text: `gemminer.data.picked.described`.
        classes: (examples,) class numbers, where the targets are such.
        cost: epochs, seconds and FLOPs of all runs.
        facts: of the network and its training, for a person.

    >>> import gemminer, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    >>> data = (x := torch.randn(64, 4), (x[:, 0] > 0).long())
    >>> scores = gemminer.scores(net, data, runs=2, epochs=3)
    >>> scores.values.shape, len(scores.choose(10, "easiest"))
    (torch.Size([64]), 10)
    """

    each: Tensor
    kind: str
    epochs: int
    seed: int = 0
    data: str = ""
    classes: Tensor | None = None
    cost: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def values(self) -> Tensor:
        """(examples,), the mean over the runs; infinite where an example was never right (forgetting)."""
        return self.each.double().mean(0)

    @property
    def runs(self) -> int:
        """How many networks were trained."""
        return len(self.each)

    @property
    def checksum(self) -> str:
        """SHA-256 over the scores and the classes."""
        found = hashlib.sha256(self.each.float().contiguous().numpy().tobytes())
        if self.classes is not None:
            found.update(self.classes.long().contiguous().numpy().tobytes())
        return found.hexdigest()

    def choose(
        self, count: int, which: Literal["easiest", "hardest", "random"], balanced: bool = True, seed: int = 0
    ) -> Tensor:
        """The indices of `count` examples, ascending: the lowest scores, the highest, or any.

        Args:
            balanced: as many of each class, what does not divide one each over the first; without classes it says
                nothing.
            seed: of the random choice, and of what is chosen among equal scores.
        """
        return chosen(count, which, self.values, self.classes, balanced, seed)

    def __repr__(self) -> str:
        networks = f"{self.runs} network{'s' if self.runs > 1 else ''}"
        return f"Scores({self.kind} of {self.each.shape[1]} examples, {networks} after {self.epochs} epochs)"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        known = self.values[self.values.isfinite()]
        parts = torch.tensor([0, 0.1, 0.25, 0.5, 0.75, 0.9, 1], dtype=torch.float64)
        row = [f"{v:.3g}" for v in (known.quantile(parts) if len(known) < 10_000_000 else parts * math.nan).tolist()]
        return table(repr(self), ("least", "10%", "25%", "50%", "75%", "90%", "most"), [row])

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, atomically; a file that is there is replaced, whosever it is."""
        path = as_path("a file of scores", path)
        tensors = {"each": self.each.float().contiguous()}
        if self.classes is not None:
            tensors["classes"] = self.classes.long().contiguous()
        about = {"format": FORMAT, "kind": self.kind, "runs": self.runs, "epochs": self.epochs, "seed": self.seed}
        about |= {"data": self.data, "cost": dict(self.cost), "facts": dict(self.facts), "checksum": self.checksum}
        with atomic(path) as temporary:
            temporary.write_bytes(save(tensors, metadata={"gemminer": json.dumps(about)}))
        return path

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Read a file of scores; raises GemminerError with one sentence for one that is missing, damaged or none."""
        path = as_path("a file of scores", path)
        try:
            with safe_open(path, framework="pt") as file:
                about = read_json((file.metadata() or {}).get("gemminer", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError) as error:
            if not path.is_file():
                raise GemminerError(f"there is no file of scores {path}: write one with gemminer score") from None
            raise GemminerError(f"{path} holds no scores, or is truncated: {in_words(error)}") from None
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            found = about.get("format") if isinstance(about, dict) else None
            raise GemminerError(f"{path} holds no scores: its format is {found!r}; this version reads {FORMAT!r}")
        try:
            found = cls(
                tensors["each"],
                str(about["kind"]),
                int(about["epochs"]),
                int(about["seed"]),
                str(about["data"]),
                tensors.get("classes"),
                dict(about["cost"]),
                dict(about["facts"]),
            )
            if found.each.dim() != 2 or found.each.isnan().any() or found.checksum != about["checksum"]:
                raise ValueError("the checksum differs from the one saved with them")
        except (LookupError, TypeError, ValueError) as error:
            raise GemminerError(f"{path} holds damaged scores ({in_words(error)}): score again") from None
        return found

    @classmethod
    def given(cls, scores: object) -> Scores:
        """Scores, or those in the file whose path is given; raises UsageError for anything else."""
        return (
            scores if isinstance(scores, cls) else cls.load(as_path("scores, a gemminer.Scores or its file,", scores))
        )
