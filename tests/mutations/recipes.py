"""Damaged recipes of runs and comparisons: refused in one sentence, or made ready to run."""

from __future__ import annotations

import json
from pathlib import Path

from gemminer.core.errors import GemminerError
from gemminer.runs import asked, compare, execute
from gemminer.runs import recipe as recipes
from tests.mutations.damage import one_line

RECIPE = {
    "method": "imp",
    "density": 0.1,
    "model": "lenet-300-100",
    "data": "digits",
    "seed": 3,
    "epochs": 2,
    "batch_size": 64,
    "train_epochs": 2,
    "limit_train": 100,
    "validation": 0.2,
    "augment": "none",
    "initialiser": "kaiming-normal",
    "model_options": {"width": 0.1, "bias": True},
    "options": {"rate": 0.5, "rewind": "warm"},
    "train": {"lr": 0.1, "optimiser": "sgd", "milestones": [1]},
    "checks": ["shuffle", "erk"],
    "check_seeds": 2,
    "dense": False,
    "exclude": ["3.*"],
}
GRID = {
    "method": ["imp:rate=0.5", "snip"],
    "density": [0.1, 0.05],
    "seed": ["0-2"],
    "data": "digits",
    "dense": True,
    "model": "lenet-300-100",
    "options": {"imp": {"rate": 0.3}},
    "parts": [{"epochs": 2}, {"seed": [4, 5]}],
}
COSTLY = 2000  # a network of such a width is right, and takes all of the memory


def files(folder: Path) -> dict[str, bytes]:
    return {"recipe.json": json.dumps(RECIPE).encode(), "grid.json": json.dumps(GRID).encode()}


def try_recipe(path: Path) -> str:
    """Make a run or a comparison ready; the sentence of a refusal, or what was done."""
    try:
        if path.name == "grid.json":
            cells = compare.plan(asked.to_compare({}, path)).cells()
            assert len({cell.digest for cell in cells}) == len(cells)
            return "planned"
        found = recipes.load(str(path))
        assert recipes.make(json.loads(found.model_dump_json(exclude_defaults=True))).digest == found.digest
        assert len(found.folder.parts) == 2
        if (
            isinstance(width := found.model_options.get("width", 1), (int, float))
            and not isinstance(width, bool)
            and width > COSTLY
        ):
            return "too large to make"
        execute.prepare(found, device="cpu")
    except GemminerError as error:
        return one_line(error)
    return "made ready"
