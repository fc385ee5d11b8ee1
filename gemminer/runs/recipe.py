"""Recipes: the validated, serialisable, hashed description of a run. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from gemminer.core.errors import UsageError, unknown
from gemminer.core.files import as_path, read_json
from gemminer.core.numbers import plain
from gemminer.runs.paper import NAMED
from gemminer.training.pretrain import Pretrain

# The default checks are left out of a recipe's identity: another list would change the identity of every old run.
DEFAULT_CHECKS = ("shuffle", "reinit", "invert", "uniform", "erk")
# Goes up with a default of a training or a method that is no field here: a run that was made with the former one is
# never gone on with, nor taken for a run of today.
DEFAULTS = 2
# The same for runs with one value of one option: (method, option, value) -> what a run with it came to mean.
REVISED = {("imp", "rewind", "warm"): "trained from step k on"}
DEFAULT = "digits"  # the recipe that `gemminer mine` and `make mine` run
ALONE = {"within": None, "pretrain": None, "scores": None}  # fields of a search that a ticket knows
RUN = {"mine": "", "compare": ""}
SMALLEST = {"smallest": ""}
MINE = RUN | SMALLEST
TICKET = {"train": "", "check": ""}
SCORED = {"score": ""}
TAKEN = MINE | TICKET | SCORED | {"export": ""}  # by every command that needs the network


@dataclass(frozen=True)
class OptionFlag:
    """A command-line flag for one option in a field that holds options."""

    flag: str
    option: str
    type: type
    help: str


@dataclass(frozen=True)
class Flag:
    """The command-line flag of a field, as far as the field's name, type, description and default do not say it.

    Args:
        name: the flag's name if it is not the field's: "--option" for `options`.
        short: the flag's one letter, "-m".
        unset: the default in words, if the field's default does not say it: "as the search".
        axis: the flag's help in `compare`, where the field takes several values.
        no: the help of the flag --no-NAME that empties a list.
        complete: the module whose names() a shell completes: "gemminer.methods".
        listed: whether the help lists the names of `complete`.
        commands: the commands that take the field -> the flag's name there, or "" for the same.
        shortcuts: further flags for single options of a field that holds options.
    """

    name: str = ""
    short: str = ""
    unset: str = ""
    axis: str = ""
    no: str = ""
    complete: str = ""
    listed: bool = False
    commands: Mapping[str, str] = dataclasses.field(default_factory=lambda: MINE)
    shortcuts: tuple[OptionFlag, ...] = ()


class Recipe(BaseModel):
    """One run: find a ticket, train it, check it. Its identity is the hash of the fields that are not the default, and
    of `DEFAULTS`.

    A field added here is a flag of `gemminer mine` and `compare` and a key of recipe files; a `Flag` in its annotation
    says what its name, type, default and bounds do not.

    `options` are the method's own (see `gemminer methods NAME`), `train` those of
    `gemminer.training.settings.Settings`, `model_options` those of `gemminer.models.build`. Epochs left at None are
    chosen from the size of the data.

    >>> Recipe(density=0.02).digest == Recipe(density=0.02, model="resnet20").digest
    True
    """

    # Built when a recipe is first made: the flags of --help are made from the fields alone.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    method: Annotated[
        str,
        Flag(
            short="-m",
            complete="gemminer.methods",
            axis="methods: NAME or NAME:OPTION=VALUE, a,b or repeated; all",
        ),
    ] = Field("gem-miner", description="pruning method (see 'gemminer methods')")
    density: Annotated[float, Flag(short="-d", axis="densities, as 0.05,0.01; or repeated", commands=RUN)] = Field(
        0.05, gt=0, le=1, description="fraction of prunable weights kept"
    )
    model: Annotated[
        str,
        Flag(complete="gemminer.models", axis="networks; a,b or repeated", commands=TAKEN),
    ] = Field(
        "resnet20",
        description="network (see 'gemminer models'), or timm:NAME, torchvision:NAME, hf:NAME, package.module:Net",
    )
    data: Annotated[
        str,
        Flag(complete="gemminer.data", axis="data sets; a,b or repeated", commands=TAKEN),
    ] = Field("digits", description="data set (see 'gemminer data')")
    seed: Annotated[int, Flag(axis="seeds, as 0,1,2 or 0-2; or repeated", commands=MINE | TICKET | SCORED)] = Field(
        0, ge=0, lt=2**63, description="seed of weights, scores, batches and checks"
    )
    epochs: Annotated[int | None, Flag(unset="by data size: 5 to 40")] = Field(
        None, ge=1, description="epochs of the search"
    )
    budget: Annotated[str | None, Flag(commands={"mine": ""})] = Field(
        None, description="length of the search instead of epochs: 120s, or a part of the training: 0.5"
    )
    train_epochs: Annotated[
        int | None, Flag(unset="as the search", commands=MINE | dict.fromkeys(TICKET, "--epochs"))
    ] = Field(None, ge=1, description="epochs of training the ticket")
    batch_size: Annotated[int | None, Flag(unset="128", commands=MINE | TICKET | SCORED)] = Field(
        None, ge=1, description="examples in a training batch"
    )
    accumulate: Annotated[int, Flag(commands=MINE | TICKET | SCORED)] = Field(
        1, ge=1, description="batches of an optimiser step, as one large batch"
    )
    precision: Annotated[Literal["fp32", "bf16"], Flag(commands=MINE | TICKET | SCORED)] = Field(
        "fp32", description="the network runs in this; weights, scores and the loss stay in fp32"
    )
    limit_train: Annotated[int | None, Flag(unset="all", commands=MINE | TICKET | SCORED)] = Field(
        None, ge=2, description="use only the first N training images"
    )
    validation: Annotated[float, Flag(commands=MINE | TICKET | SCORED)] = Field(
        0.1, ge=0, lt=1, description="fraction of the training data held out"
    )
    augment: Annotated[str, Flag(unset="the data set's own", commands=MINE | TICKET | SCORED)] = Field(
        "default", description="crop4+flip and the like, or none"
    )
    initialiser: Annotated[str | None, Flag(unset="the method's own")] = Field(
        None, description="distribution of the initial weights"
    )
    model_options: Annotated[dict[str, Any], Flag(name="--model-option", commands=TAKEN)] = Field(
        default_factory=dict, description="an option of the network (see 'gemminer models NAME'); repeatable"
    )
    options: Annotated[
        dict[str, Any],
        Flag(
            name="--option",
            short="-o",
            commands={"mine": ""} | SMALLEST,
            shortcuts=(
                OptionFlag("--lambda", "ridge", float, "Gem-Miner's lambda, fixed. [solved for at each step]"),
                OptionFlag(
                    "--freeze-every",
                    "freeze_every",
                    int,
                    "Freeze every E epochs, as published; 0: a little every few steps. [0]",
                ),
            ),
        ),
    ] = Field(default_factory=dict, description="an option of the method (see 'gemminer methods NAME'); repeatable")
    train: Annotated[
        dict[str, Any],
        Flag(
            name="--train-option",
            short="-t",
            commands=MINE | TICKET | SCORED,
            shortcuts=(
                OptionFlag(
                    "--max-norm",
                    "max_norm",
                    float,
                    "Longest gradient of a training step (of the search: -o max_norm=N). [found with the rate]",
                ),
            ),
        ),
    ] = Field(default_factory=dict, description="a setting of the training (lr, optimiser, ...); repeatable")
    checks: Annotated[
        tuple[str, ...],
        Flag(
            no="do not run the sanity checks",
            complete="gemminer.runs.checks",
            listed=True,
            commands=RUN | {"check": "--check"},
        ),
    ] = Field(DEFAULT_CHECKS, description="sanity checks (see 'gemminer checks')")
    check_seeds: Annotated[int, Flag(commands=RUN | {"check": "--seeds"})] = Field(
        3, ge=1, description="training seeds of the ticket and of each check"
    )
    dense: Annotated[bool, Flag(commands=RUN)] = Field(
        True, description="train the dense network too, as the reference"
    )
    include: tuple[str, ...] = Field(
        (), description="further weights of 2 and more dimensions to prune, by name, as shell patterns"
    )
    exclude: tuple[str, ...] = Field((), description="weights to leave dense, by name, as shell patterns: conv1*,fc*")
    embeddings: bool = Field(False, description="prune embedding tables too")
    within: Annotated[str | None, Flag(commands={"mine": ""})] = Field(
        None, description="a ticket's file, or its run's folder: the search stays inside its mask"
    )

    pretrain: Annotated[
        str | None, Flag(axis="pre-trainings, as all@0,all@200,easiest:3200@200; or repeated", commands=RUN)
    ] = Field(None, description="train k steps before the search, on all or some examples: all@200, easiest:3200@200")
    scores: Annotated[str | None, Flag(commands=RUN)] = Field(
        None, description="file of 'gemminer score', by which --pretrain chooses"
    )

    @field_validator("pretrain")
    @classmethod
    def _one_text(cls, value: str | None) -> str | None:
        """The text in one spelling; no steps are no pre-training."""
        found = Pretrain.given(value)
        return None if found is None else found.text

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: ValidationInfo) -> Any:
        """NumPy's and PyTorch's numbers are Python's; a boolean is no number, and one string a list of one."""
        value, name = plain(value), str(info.field_name)
        kind = cls.model_fields[name].annotation
        if isinstance(value, bool) and kind is not bool:
            raise ValueError(f"{name} must be no boolean, not {value}")
        return (value,) if isinstance(value, str) and kind == tuple[str, ...] else value

    @model_validator(mode="after")
    def _one_length(self) -> Recipe:
        if self.budget is not None:
            budget_of(self.budget)
            if self.epochs is not None:
                raise ValueError("a search has epochs or a budget, not both: leave one out")
        return self

    @property
    def digest(self) -> str:
        """Hash of the non-default fields and of `DEFAULTS`: adding a field with a default keeps old runs valid."""
        revised = [
            v
            for (method, name, value), v in REVISED.items()
            if (method, value) == (self.method, self.options.get(name))
        ]
        fields = {
            **self.model_dump(mode="json", exclude_defaults=True),
            "": [DEFAULTS, *revised] if revised else DEFAULTS,
        }
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]

    def replace(self, **changes: Any) -> Recipe:
        """A validated copy with other fields; those that are None are left as they are."""
        fields = self.model_dump(exclude_defaults=True)
        return make({**fields, **{k: v for k, v in changes.items() if v is not None}})

    def changed(self, given: Mapping[str, Any]) -> Recipe:
        """A validated copy with the fields `given`; of a field that holds options only the names given change.

        >>> Recipe(train={"lr": 0.1}).changed({"train": {"momentum": 0}}).train
        {'lr': 0.1, 'momentum': 0}
        """
        return make(on_top(self.model_dump(exclude_defaults=True), given))

    @property
    def folder(self) -> Path:
        """The folder of a run of this recipe if none is named."""
        model, data = (name.replace("/", "_").replace(":", "_") for name in (self.model, self.data))
        name = f"{model}-{data}-{self.density:g}-{self.method}-s{self.seed}-{self.digest[:6]}"
        return Path("runs") / name


def on_top(fields: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Plain fields updated by those given; a field that holds options keeps its other options."""
    both = {
        name: {**fields.get(name, {}), **value} if isinstance(value, Mapping) else value
        for name, value in given.items()
    }
    return {**fields, **both}


def budget_of(text: str) -> tuple[float | None, float | None]:
    """(seconds, fraction of the training's epochs) from a budget's text; one of the two is None.

    >>> budget_of("120s"), budget_of("0.5")
    ((120.0, None), (None, 0.5))
    """
    if not isinstance(text, str):
        raise UsageError(f"budget is text, seconds as '120s' or a part of a dense training as '0.5', not {text!r}")
    try:
        value = float(text.removesuffix("s"))
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UsageError(f"budget is seconds, as 120s, or a part of a dense training, as 0.5; {text!r} is neither")
    return (value, None) if text.endswith("s") else (None, value)


def make(fields: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """A recipe from plain fields; raises UsageError with one sentence that names the field at fault."""
    require_fields(fields, where)
    try:
        return Recipe(**fields)
    except ValidationError as error:
        raise UsageError(explain(error, where)) from None


def require_fields(fields: Mapping[str, Any], where: str = "recipe") -> None:
    """Raise UsageError for a name that is no field of a recipe, naming the one that was meant, or where it stands."""
    for name in fields:
        if name not in Recipe.model_fields:
            keywords = import_module("gemminer.runs.keywords")  # now: recipes import nothing heavy
            raise unknown(f"field of {where}", name, Recipe.model_fields, keywords.inside(fields.get("method")))


def explain(error: ValidationError, where: str) -> str:
    """The first complaint of pydantic as a sentence."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"]) or where
    if name == "density" and first["type"] != "float_parsing":
        return f"density is the fraction of weights kept, above 0 and at most 1; {first['input']} is not"
    if first["type"] == "value_error":
        return str(first["ctx"]["error"]) if "ctx" in first else first["msg"]
    return f"{name}: {first['msg'][0].lower()}{first['msg'][1:]}, not {first['input']!r}"


def load(name_or_file: str) -> Recipe:
    """A named recipe, or one from a TOML or JSON file."""
    name_or_file = str(as_path("a recipe", name_or_file))
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
        return name.replace("-", "_"), read_json(value)
    except ValueError:
        return name.replace("-", "_"), value


def fields_of(path: Path) -> dict[str, Any]:
    """The fields in a TOML or JSON file; raises UsageError with one sentence where it holds something else."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the recipe {path}: {getattr(error, 'strerror', None) or error}") from None
    try:
        fields = tomllib.loads(text) if path.suffix == ".toml" else read_json(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the recipe {path} is not valid {path.suffix[1:].upper()}: {error}") from None
    if not isinstance(fields, dict):
        raise UsageError(f"the recipe {path} must hold fields by name, as {{'density': 0.05}}")
    return fields


def names() -> tuple[str, ...]:
    """All named recipes."""
    return tuple(NAMED)
