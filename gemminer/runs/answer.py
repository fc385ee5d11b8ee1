"""The answer to `gemminer smallest`: what was asked, what each density came to, the files to ship. smallest.json."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from gemminer.core import numbers
from gemminer.core.errors import GemminerError, UsageError
from gemminer.core.files import as_path, read_json, regular, save_text
from gemminer.core.html import table
from gemminer.core.ticket import Ticket

SCHEMA = "gemminer.smallest/1"
POINTS = 0.5  # what may be lost where nothing is asked for, of an accuracy
_UNITS = {"B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KIB": 1024, "MIB": 1024**2, "GIB": 1024**3, "": 1}

Verdict = Literal["within", "fits", "undecided", "none"]


def is_share(metric: str) -> bool:
    """Whether a metric is a share of the examples, which people read in per cent and points."""
    return metric.lower().endswith("accuracy")


def bytes_of(size: Any) -> int:
    """A size in bytes, of a number or a text as 60KB; raises UsageError for anything else.

    >>> bytes_of("60KB"), bytes_of("1.5 MB"), bytes_of(800)
    (60000, 1500000, 800)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([KMG]?i?B|)\s*", str(numbers.plain(size)), flags=re.IGNORECASE)
    value = round(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if isinstance(size, bool) or value < 1:
        raise UsageError(f"size is bytes, or a text as 60KB or 1.5MB, not {numbers.shown(size)}")
    return value


def in_bytes(count: float) -> str:
    """A size as people read it.

    >>> in_bytes(812), in_bytes(60_400), in_bytes(1_234_000)
    ('812 B', '60.4 KB', '1.23 MB')
    """
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


class Question(BaseModel):
    """What is asked: `within`, as the user gave it (points of an accuracy), `size` in bytes, over so many seeds."""

    within: float | None = None
    size: int | None = None
    seeds: int = 3

    def margin(self, metric: str) -> float:
        """What may be lost, in units of the metric."""
        return (self.within or 0.0) / (100 if is_share(metric) else 1)


def question(within: Any, size: Any, seeds: Any) -> Question:
    """A question that can be; raises UsageError for one that cannot. `within` is checked against the metric later."""
    value = numbers.plain(within)
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e9):
        raise UsageError(f"within is what may be lost, a number of 0 or more, not {numbers.shown(within)}")
    found = None if size is None else bytes_of(size)
    return Question(within=value, size=found, seeds=numbers.whole("seeds", seeds, least=1))


class Spread(BaseModel):
    """Values over seeds, their mean and sample standard deviation."""

    values: tuple[float, ...] = ()
    mean: float | None = None
    std: float | None = None


class Probe(BaseModel):
    """A density that was looked at: what its trained networks came to on validation data.

    `difference` is the mean of ticket minus dense network, `low` and `high` its one-sided 95% bounds, if there are any.
    """

    density: float
    kept: int
    validation: Spread
    difference: float
    std: float = 0.0
    low: float | None = None
    high: float | None = None
    verdict: str
    chosen: bool = Field(False, description="whether it is the answer")
    bytes: int | None = Field(None, description="of the compiled program of the first trained network")
    latency: float | None = Field(None, description="seconds of one example in it")
    seconds: float = Field(0.0, description="of the search and the first training")


class Smallest(BaseModel):
    """What `smallest` found, and a page's contents.

    A verdict "within" or "fits" is yes, beyond chance where there is chance; "undecided": the ticket's mean is within,
    and chance could have made it so; "none": no density that was looked at is an answer.
    """

    model_config = ConfigDict(populate_by_name=True)

    schema_: str = Field(SCHEMA, alias="schema")
    created: str | None = None
    command: str | None = None
    question: Question
    verdict: Verdict
    sentence: str = Field(description="the answer in words")
    evidence: str = Field("", description="the figures it rests on, in words")
    metric: str = "accuracy"
    density: float | None = Field(None, description="of the answer; None where there is none")
    kept: int | None = None
    prunable: int
    probes: list[Probe] = Field(description="every density that was looked at, from the densest")
    ladder: tuple[float, ...]
    dense: Spread = Field(description="the dense network on validation data")
    test: Spread | None = Field(None, description="the answer on test data, which chose nothing")
    dense_test: Spread | None = None
    dense_latency: float | None = Field(None, description="seconds of one example in PyTorch's dense network")
    validation_examples: int
    method: str
    model: str
    data: str
    seed: int
    files: dict[str, int] = Field(default_factory=dict, description="what to ship, with its size in bytes")
    left_out: dict[str, str] = Field(default_factory=dict, description="what could not be made of these, and why")
    notes: list[str] = Field(default_factory=list)
    seconds: float = Field(0.0, description="of all searches and trainings")
    hardware: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, Any] = Field(default_factory=dict)
    git: str | None = None
    _folder: Path | None = PrivateAttr(None)

    @property
    def ticket(self) -> Ticket | None:
        """The ticket of the answer, from its file; None where there is none."""
        if self._folder is None or self.density is None:
            return None
        return Ticket.load(self._folder / "ticket.safetensors")

    @property
    def folder(self) -> Path | None:
        """Where the files are."""
        return self._folder

    def at(self, folder: Path) -> Smallest:
        """The same, which knows its folder."""
        self._folder = folder
        return self

    def save(self, path: Path) -> Path:
        """Write smallest.json, atomically."""
        return save_text(path, self.model_dump_json(by_alias=True, indent=1) + "\n")

    def rows(self) -> list[tuple[str, ...]]:
        """A row of texts for each density, under `HEAD`."""
        dense = (self.spread(self.dense), "", "", milliseconds(self.dense_latency), "")
        found: list[tuple[str, ...]] = [("dense", f"{self.prunable:,}", *dense)]
        for probe in self.probes:
            by = "" if probe.low is None else f" (at least {difference(probe.low, self.metric)})"
            far = f"{difference(probe.difference, self.metric)}{by}"
            size = in_bytes(probe.bytes) if probe.bytes else ""
            row = (self.spread(probe.validation), far, size, milliseconds(probe.latency), probe.verdict)
            found.append((percent(probe.density), f"{probe.kept:,}", *row))
        return found

    def spread(self, found: Spread) -> str:
        """A mean with its deviation, and how many values it is of."""
        if found.mean is None:
            return ""
        more = f" ± {deviation(found.std or 0.0, self.metric)}" if len(found.values) > 1 else ""
        return f"{value(found.mean, self.metric)}{more}"

    def __repr__(self) -> str:
        what = f", density {percent(self.density)}" if self.density else ""
        return f"Smallest({self.verdict}{what})"

    def __str__(self) -> str:
        return "\n".join([self.sentence, self.evidence, *aligned([HEAD, *self.rows()])])

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return table(f"{self.sentence} {self.evidence}", HEAD, self.rows())


HEAD = ("density", "kept", "validation", "against dense", "program", "one example", "verdict")


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns as wide as they need to be.

    >>> aligned([("a", "b"), ("long", "c")])
    ['  a     b', '  long  c']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def percent(density: float) -> str:
    return f"{float(f'{100 * density:.3g}'):.10g}%"


def milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.3g} ms"


def value(x: float, metric: str) -> str:
    return f"{100 * x:.2f}%" if is_share(metric) else f"{x:.4g}"


def difference(x: float, metric: str) -> str:
    """A signed difference, of accuracies in points."""
    text = f"{100 * x:+.2f}" if is_share(metric) else f"{x:+.3g}"
    return text.replace("-", "−")


def deviation(x: float, metric: str) -> str:
    """A standard deviation, of accuracies in points."""
    return f"{100 * x:.2f}" if is_share(metric) else f"{x:.3g}"


def read(path: str | Path) -> Smallest:
    """Read a smallest.json, or the folder of one; raises GemminerError with one sentence."""
    path = as_path("an answer", path)
    file = path / "smallest.json" if path.is_dir() else path
    again = "run gemminer smallest again"
    try:
        fields = read_json(regular(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise GemminerError(f"cannot read {file}: {error.strerror}; pass the folder of an answer") from None
    except ValueError as error:
        raise GemminerError(f"{file} is damaged ({error}): {again}") from None
    schema = fields.get("schema") if isinstance(fields, dict) else None
    if schema != SCHEMA:
        raise GemminerError(f"{file} has schema {schema!r}; this version reads {SCHEMA!r}")
    try:
        return Smallest(**fields).at(file.parent)
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise GemminerError(f"{file} is damaged (no usable {place!r}): {again}") from None
