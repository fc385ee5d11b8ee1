"""A run's record: the contents of record.json, and its reader.

`gemminer.core.ticket.Layer` and `gemminer.core.statistics.Check` are its rows. The reader accepts a record that lacks
optional fields, as one of another version may: a missing number is NaN or None, an unknown verdict "not decided".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from gemminer.core.errors import GemminerError
from gemminer.core.files import as_path, read_json, regular, save_text
from gemminer.core.left_dense import LeftDense
from gemminer.core.statistics import Check, Judgement
from gemminer.core.ticket import Layer

SCHEMA = "gemminer.record/1"


def _known(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are not null; the others take their defaults."""
    return {name: value for name, value in fields.items() if value is not None}


def _optional(**defaults: Any) -> BeforeValidator:
    """A validator that gives defaults to fields a row in a file may lack."""
    return BeforeValidator(lambda row: {**defaults, **_known(row)} if isinstance(row, dict) else row)


def _judged(row: Any) -> Any:
    unknown = isinstance(row, dict) and row["verdict"] not in get_args(Judgement)
    return {**row, "verdict": "not decided"} if unknown else row


# Of a pair of validators the last runs first.
LayerRow = Annotated[Layer, _optional(shape=(), prunable=0, filters=0, dead_filters=0)]
CheckRow = Annotated[
    Check,
    BeforeValidator(_judged),
    _optional(n=0, std=0.0, difference=math.nan, difference_std=0.0, verdict="", values=(), ticket_values=()),
]


class _Part(BaseModel):
    """A part of a record in which a null is a field that is not there."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, fields: Any) -> Any:
        return _known(fields) if isinstance(fields, dict) else fields


class Density(_Part):
    """asked: as requested; realised = kept / prunable; live: the part of all weights that is also switched on."""

    asked: float
    realised: float
    kept: int | None = None
    prunable: int | None = None
    live: float | None = None


class Accuracy(_Part):
    """The metric on the test set (accuracy: a fraction of 1). `after` is the mean over `n` training seeds."""

    before: float | None = None
    after: float | None = None
    after_std: float | None = None
    after_values: tuple[float, ...] = ()
    n: int = 0
    dense: float | None = None
    validation: float | None = Field(None, description="of the ticket after training, first seed")


class PerClass(_Part):
    """The metric after training over the test examples of each class; None for a class without any."""

    after: tuple[float | None, ...] = ()
    names: tuple[str, ...] = Field((), description="of the classes, where the data set names them")

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, fields: Any) -> Any:
        """Also accept {"after": {NAME: x}}."""
        after = fields.get("after") if isinstance(fields, dict) else None
        return {"after": tuple(after.values()), "names": tuple(after)} if isinstance(after, dict) else fields


class Cost(_Part):
    """Cost of one search or one training: FLOPs of all its steps, of all weights and of the kept weights."""

    epochs: float = math.nan
    seconds: float = math.nan
    flops_dense: float = math.nan
    flops_sparse: float = math.nan


class Rate(_Part):
    """The learning rate of one training and its longest gradient, and the trials that found them, if any."""

    lr: float = math.nan
    max_norm: float | None = None
    steps: int = Field(0, description="of all trials together")
    seconds: float = 0.0
    tried: tuple[tuple[float, float | None], ...] = Field((), description="rate and loss of each trial, in order")


class Engine(_Part):
    """The engine asked for, and by weight name the density below which its layer computed kept weights only."""

    asked: str = ""
    below: dict[str, float] = Field(default_factory=dict, description="a layer that is not named was dense")


class Removable(_Part):
    """A layer that could be removed: the method's score of it, the shape it gives, whether the ticket removes it."""

    name: str
    score: float = math.nan
    stage: tuple[int, ...] = ()
    removed: bool = False


class Start(_Part):
    """What a ticket starts from that is not the initial weights: those of step k of a training."""

    step: int | None = Field(None, description="k; None for weights that are kept as trained")
    pretrain: dict[str, Any] = Field(default_factory=dict, description="of a pre-training: examples, noise, indices")


class Record(_Part):
    """The result of a run. Versioned: readers refuse a `schema` they do not know."""

    model_config = ConfigDict(populate_by_name=True)

    schema_: str = Field(SCHEMA, alias="schema")
    created: str | None = None
    command: str | None = None
    method: str
    options: dict[str, Any] = Field(default_factory=dict)
    model: str
    model_options: dict[str, Any] = Field(default_factory=dict)
    data: str
    data_options: dict[str, Any] = Field(default_factory=dict)
    seed: int | None = None
    recipe: dict[str, Any] = Field(default_factory=dict)
    recipe_hash: str | None = None
    metric: str = "accuracy"
    density: Density
    layers: list[LayerRow]
    left_dense: list[LeftDense] = Field(
        default_factory=list, description="weights of two and more dimensions that were not prunable, and why"
    )
    accuracy: Accuracy
    removable: list[Removable] = Field(
        default_factory=list, description="the layers that could be removed, where the method removes whole ones"
    )
    start: Start | None = Field(None, description="None where the ticket is at initialisation")
    per_class: PerClass | None = None
    verdict: str | None = None
    checks: dict[str, CheckRow] = Field(default_factory=dict)
    cost: dict[str, Cost] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)
    engine: Engine | None = None
    precision: str = Field("fp32", description="fp32, or bf16: the network ran in bfloat16, weights in float32")
    accumulate: int = Field(1, description="batches of an optimiser step")
    rates: dict[str, Rate] = Field(default_factory=dict, description="by training: train:0, dense, check:NAME:0")
    hardware: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, Any] = Field(default_factory=dict)
    git: str | None = None

    def to_json(self) -> str:
        return self.model_dump_json(by_alias=True, indent=1) + "\n"

    def save(self, path: Path) -> Path:
        """Write the record, atomically."""
        return save_text(path, self.to_json())


def read(path: str | Path) -> Record:
    """Read a record.json, or a run's folder; raises GemminerError with one sentence."""
    path = as_path("a record", path)
    path = path / "record.json" if path.is_dir() else path
    try:
        fields = read_json(regular(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise GemminerError(f"cannot read the record {path}: {error.strerror}; pass a finished run's folder") from None
    except ValueError as error:
        raise _damaged(path, str(error)) from None
    return parsed(fields, path)


def parsed(fields: Any, path: str | Path) -> Record:
    """The record with these fields, as JSON has them; `path` is where they come from, for the error's sentence."""
    schema = fields.get("schema") if isinstance(fields, dict) else None
    if not isinstance(schema, str) or not schema.startswith(SCHEMA.partition("/")[0] + "/"):
        raise GemminerError(f"{path} is not a gemminer record: it has schema {schema!r}; this version reads {SCHEMA!r}")
    if schema != SCHEMA:
        raise GemminerError(f"{path} has schema {schema!r}; this version reads {SCHEMA!r}: upgrade gemminer")
    try:
        return Record(**fields)
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise _damaged(path, f"no usable {place!r}") from None


def _damaged(path: str | Path, why: str) -> GemminerError:
    return GemminerError(f"{path} is damaged ({why}) or is not a gemminer record: run the command that made it again")
