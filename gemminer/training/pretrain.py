"""What a pre-training is: how many steps, on which examples. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from gemminer.core.errors import UsageError, unknown
from gemminer.core.files import read_json
from gemminer.core.numbers import options, plain, whole

Examples = Literal["all", "easiest", "random", "hardest"]
_HOW = "a pre-training is written EXAMPLES:COUNT@STEPS, as all@200 or easiest:3200@200, then :noise=0.5 and the like"


@dataclass(frozen=True)
class Pretrain:
    """A short training of the dense network before a search: an initialiser, which turns weights w_0 into w_k.

    Whatever finds the ticket then starts from w_k, and the ticket is trained for the T - k steps of a training that are
    left. The k steps are the first of that training's schedule; the optimiser's state is not carried over.

    Args:
        steps: k, optimiser steps.
        examples: "all", or which of them are trained on: the "easiest" and the "hardest" by score, or "random" ones.
        count: how many; it says nothing with "all".
        scores: `gemminer.Scores` or their file; None computes them first, runs * epochs epochs of training.
        kind: of the scores that are computed.
        runs: networks that they are computed with.
        epochs: before an example is scored.
        balanced: as many of each class.
        noise: the fraction of all labels that is drawn anew for the pre-training, and for scores that are computed; the
            search and all later trainings have the true ones.
        train: settings of this training: lr, optimiser, epochs (T) and others of
            `gemminer.training.settings.Settings`; of a recipe those of its training.

    Raises:
        UsageError: what cannot be.

    >>> Pretrain.parse("easiest:3200@200:noise=0.5").text
    'easiest:3200@200:noise=0.5'
    """

    steps: int = 200
    examples: Examples = "all"
    count: int = 2048
    scores: Any = None
    kind: str = "el2n"
    runs: int = 10
    epochs: int = 20
    balanced: bool = True
    noise: float = 0.0
    train: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.examples not in get_args(Examples):
            raise unknown("examples of a pre-training:", self.examples, get_args(Examples))
        whole("steps of a pre-training", self.steps, least=1)
        whole("count, the examples of a pre-training,", self.count, least=1)
        noise = plain(self.noise)
        if isinstance(noise, bool) or not isinstance(noise, (int, float)) or not 0 <= noise <= 1:
            raise UsageError(f"noise, the fraction of labels that is drawn anew, is 0 to 1, not {noise!r}")
        if not isinstance(self.balanced, bool):
            raise UsageError(f"balanced is true or false, not {self.balanced!r}")

    @property
    def needs_scores(self) -> bool:
        """Whether the examples are chosen by a score."""
        return self.examples in ("easiest", "hardest")

    @property
    def text(self) -> str:
        """As the command line writes it, without the file of scores and the training's settings."""
        which = "all" if self.examples == "all" else f"{self.examples}:{self.count}"
        usual = {f.name: f.default for f in dataclasses.fields(self)}
        names = ("kind", "runs", "epochs", "balanced", "noise") if self.needs_scores else ("balanced", "noise")
        own = {name: getattr(self, name) for name in names if getattr(self, name) != usual[name]}
        more = "".join(f":{name}={_said(value)}" for name, value in own.items())
        return f"{which}@{self.steps}{more}"

    @classmethod
    def parse(cls, text: str, scores: Any = None) -> Pretrain:
        """From the command line's text; raises UsageError for one that is none."""
        start, _, more = text.partition("@")
        steps, *others = more.split(":")
        which, _, count = start.partition(":")
        if not steps.isdecimal() or (count and not count.isdecimal()) or (which == "all") == bool(count):
            raise UsageError(f"{_HOW}; {text!r} is not")
        fields: dict[str, Any] = {"steps": int(steps), "examples": which} | ({"count": int(count)} if count else {})
        types = {f.name: str(f.type) for f in dataclasses.fields(cls) if f.name not in ("scores", "train", *fields)}
        for other in others:
            name, equals, value = other.partition("=")
            if not equals or name not in types:
                raise unknown("part of a pre-training", name, types)
            try:
                fields[name] = read_json(value)
            except ValueError:
                fields[name] = value
        return cls(**options("a pre-training", fields, types), scores=scores)

    @classmethod
    def given(cls, asked: object, scores: Any = None) -> Pretrain | None:
        """A pre-training, or that of a text; None where there is none, which all@0 says as well."""
        if isinstance(asked, str):
            return None if none_of(asked) else cls.parse(asked, scores)
        if asked is not None and not isinstance(asked, cls):
            raise UsageError(f"pretrain is a gemminer.Pretrain or a text as 'easiest:3200@200', not {asked!r:.60}")
        return asked


def none_of(text: str) -> bool:
    """Whether a text asks for no steps, as all@0."""
    return text.partition("@")[2].partition(":")[0].isdecimal() and int(text.partition("@")[2].partition(":")[0]) == 0


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value)
