"""A run's record: what was asked, what came of it, and the machine it was made on. record.json holds it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gemminer.core.errors import GemminerError
from gemminer.core.files import atomic

SCHEMA = "gemminer.record/1"


class Density(BaseModel):
    """asked: as requested; realised = kept / prunable; live: the part of all weights that is also switched on."""

    asked: float
    realised: float
    kept: int
    prunable: int
    live: float | None = None


class LayerRow(BaseModel):
    """One masked parameter; a dead filter is an output unit with no kept weight."""

    name: str
    shape: tuple[int, ...]
    prunable: int
    kept: int
    density: float
    filters: int
    dead_filters: int


class Accuracy(BaseModel):
    """The metric on the test set (accuracy: a fraction of 1). `after` is the mean over `n` training seeds."""

    before: float | None = None
    after: float | None = None
    after_std: float | None = None
    after_values: tuple[float, ...] = ()
    n: int = 0
    dense: float | None = None
    validation: float | None = Field(None, description="of the ticket after training, first seed")


class PerClass(BaseModel):
    """The metric after training over the test examples of each class; None for a class without any."""

    after: tuple[float | None, ...]
    names: tuple[str, ...] = Field((), description="of the classes, where the data set names them")


class CheckRow(BaseModel):
    """A sanity check over n paired seeds; `difference` is ticket minus check."""

    mean: float
    std: float
    n: int
    difference: float
    difference_std: float
    verdict: Literal["pass", "fail", "not decided"]
    values: tuple[float, ...]
    ticket_values: tuple[float, ...]


class Cost(BaseModel):
    """Of one search or one training: FLOPs of all its steps, dense and counting zeros."""

    epochs: float
    seconds: float
    flops_dense: float
    flops_sparse: float


class Engine(BaseModel):
    """Which engine was asked for, and by weight's name the density below which its layer computed kept weights only."""

    asked: str
    below: dict[str, float] = Field(default_factory=dict, description="a layer that is not named was dense")


class Record(BaseModel):
    """The result of a run. Versioned: readers refuse a `schema` they do not know."""

    model_config = ConfigDict(populate_by_name=True)

    schema_: str = Field(SCHEMA, alias="schema")
    created: str
    command: str
    method: str
    options: dict[str, Any]
    model: str
    model_options: dict[str, Any]
    data: str
    data_options: dict[str, Any]
    seed: int
    recipe: dict[str, Any]
    recipe_hash: str
    metric: str
    density: Density
    layers: list[LayerRow]
    accuracy: Accuracy
    per_class: PerClass | None = None
    verdict: str | None = None
    checks: dict[str, CheckRow]
    cost: dict[str, Cost]
    notes: list[str] = Field(default_factory=list)
    engine: Engine | None = None
    hardware: dict[str, Any]
    versions: dict[str, str]
    git: str | None

    def to_json(self) -> str:
        return self.model_dump_json(by_alias=True, indent=1) + "\n"

    def save(self, path: Path) -> Path:
        """Write the record, atomically."""
        with atomic(path) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")
        return path


def read(path: str | Path) -> Record:
    """Read a record.json, or a run's folder; raises GemminerError with one sentence."""
    path = Path(path)
    path = path / "record.json" if path.is_dir() else path
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if fields.get("schema") != SCHEMA:
            raise GemminerError(f"{path} has schema {fields.get('schema')!r}; this version reads {SCHEMA!r}")
        return Record(**fields)
    except OSError as error:
        raise GemminerError(f"cannot read the record {path}: {error.strerror}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise GemminerError(f"{path} is not a gemminer record: {str(error).splitlines()[0]}") from None
