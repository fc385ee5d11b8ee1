"""What to run: validated, serialisable, hashed; the paper's settings by name. Imports nothing heavy."""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gemminer.core.errors import UsageError, unknown
from gemminer.runs.paper import NAMED

# A recipe's identity leaves out what is the default: another list would make other recipes of all that were ever run.
DEFAULT_CHECKS = ("shuffle", "reinit", "invert", "uniform", "erk")


class Recipe(BaseModel):
    """One run: find a ticket, train it, check it. Its identity is the hash of the fields that are not the default.

    `options` are the method's own (see `gemminer methods NAME`), `train` those of
    `gemminer.training.settings.Settings`, `model_options` those of `gemminer.models.build`. Epochs left at None are
    chosen from the size of the data.

    >>> Recipe(density=0.02).digest == Recipe(density=0.02, model="resnet20").digest
    True
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    method: str = Field("gem-miner", description="pruning method")
    density: float = Field(0.05, gt=0, le=1, description="fraction of prunable weights kept")
    model: str = Field("resnet20", description="network")
    data: str = Field("digits", description="data set")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of weights, scores, batches and checks")
    epochs: int | None = Field(None, ge=1, description="epochs of the search")
    train_epochs: int | None = Field(
        None, ge=1, description="epochs of training the ticket; as the search if not given"
    )
    budget: str | None = Field(
        None, description="length of the search instead of epochs: 120s, or a part of the dense training: 0.5"
    )
    batch_size: int | None = Field(None, ge=1, description="examples in a training batch")
    limit_train: int | None = Field(None, ge=2, description="use only the first N training images")
    validation: float = Field(0.1, ge=0, lt=1, description="fraction of the training data held out")
    augment: str = Field("default", description="crop4+flip and the like, or none")
    initialiser: str | None = Field(
        None, description="distribution of the initial weights; the method's own if not given"
    )
    model_options: dict[str, Any] = Field(default_factory=dict, description="options of the network")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the method")
    train: dict[str, Any] = Field(default_factory=dict, description="optimiser and schedule of the training")
    checks: tuple[str, ...] = Field(DEFAULT_CHECKS, description="sanity checks")
    check_seeds: int = Field(3, ge=1, description="training seeds of the ticket and of each check")
    dense: bool = Field(True, description="train the dense network too, as the reference")
    exclude: tuple[str, ...] = Field((), description="weights to leave dense, as shell patterns")
    embeddings: bool = Field(False, description="prune embedding tables too")

    @model_validator(mode="after")
    def _one_length(self) -> Recipe:
        if self.budget is not None:
            budget_of(self.budget)
            if self.epochs is not None:
                raise ValueError("a search has epochs or a budget, not both: leave one out")
        return self

    @property
    def digest(self) -> str:
        """Hash of the non-default fields: adding a field with a default keeps old runs valid."""
        fields = self.model_dump(mode="json", exclude_defaults=True)
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]

    def replace(self, **changes: Any) -> Recipe:
        """A validated copy with other fields; those that are None are left as they are."""
        fields = self.model_dump(exclude_defaults=True)
        return make({**fields, **{k: v for k, v in changes.items() if v is not None}})


def budget_of(text: str) -> tuple[float | None, float | None]:
    """Seconds, or a part of the dense training's epochs, from what a budget is written as; the other is None.

    >>> budget_of("120s"), budget_of("0.5")
    ((120.0, None), (None, 0.5))
    """
    try:
        value = float(text.removesuffix("s"))
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UsageError(f"budget is seconds, as 120s, or a part of a dense training, as 0.5; {text!r} is neither")
    return (value, None) if text.endswith("s") else (None, value)


def make(fields: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """A recipe from plain fields; raises UsageError with one sentence that names the field at fault."""
    try:
        return Recipe(**fields)
    except ValidationError as error:
        raise UsageError(explain(error, where)) from None


def explain(error: ValidationError, where: str) -> str:
    """The first complaint of pydantic as a sentence."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"]) or where
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{where} has no field {name!r}"
    if name == "density" and first["type"] != "float_parsing":
        return f"density is the fraction of weights kept, above 0 and at most 1; {first['input']} is not"
    if first["type"] == "value_error":
        return str(first["ctx"]["error"]) if "ctx" in first else first["msg"]
    return f"{name}: {first['msg'][0].lower()}{first['msg'][1:]}, not {first['input']!r}"


def load(name_or_file: str) -> Recipe:
    """A named recipe, or one from a TOML or JSON file."""
    if name_or_file in NAMED:
        return make(NAMED[name_or_file], name_or_file)
    path = Path(name_or_file)
    if path.suffix not in (".toml", ".json"):
        raise unknown("recipe", name_or_file, NAMED)
    return make(fields_of(path), str(path))


def setting(text: str, complaint: str) -> tuple[str, Any]:
    """NAME=VALUE as a field's name and its value, read as JSON where it is JSON; else a UsageError: `complaint`."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(complaint)
    try:
        return name.replace("-", "_"), json.loads(value)
    except ValueError:
        return name.replace("-", "_"), value


def fields_of(path: Path) -> dict[str, Any]:
    """What a TOML or JSON file holds by name; raises UsageError with one sentence where it holds something else."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the recipe {path}: {getattr(error, 'strerror', None) or error}") from None
    try:
        fields = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except ValueError as error:
        raise UsageError(f"the recipe {path} is not valid {path.suffix[1:].upper()}: {error}") from None
    if not isinstance(fields, dict):
        raise UsageError(f"the recipe {path} must hold fields by name, as {{'density': 0.05}}")
    return fields


def names() -> tuple[str, ...]:
    """All named recipes."""
    return tuple(NAMED)
