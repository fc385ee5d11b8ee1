"""The kinds of files that are damaged, and the trial of many damaged files of a kind."""

from __future__ import annotations

import functools
import random
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.mutations import checkpoints, images, programs, recipes, records, tickets
from tests.mutations.damage import damaged_json, damaged_tensors


@dataclass(frozen=True)
class Kind:
    """Sound files by name, made with the help of a folder; how one is damaged; and what is done with a damaged one.

    `attempt` is given the damaged file, the others sound beside it. It returns the sentence of a refusal or a word for
    what was done; any exception is a fault.
    """

    files: Callable[[Path], dict[str, bytes]]
    damaged: Callable[[bytes, random.Random], bytes]
    attempt: Callable[[Path], str]


KINDS = {
    "programs": Kind(
        programs.files, functools.partial(damaged_tensors, sign=programs.sign_program), programs.try_program
    ),
    "tickets": Kind(tickets.files, functools.partial(damaged_tensors, sign=tickets.sign_ticket), tickets.try_ticket),
    "records": Kind(records.files, records.damaged, records.try_run),
    "recipes": Kind(recipes.files, damaged_json, recipes.try_recipe),
    "checkpoints": Kind(checkpoints.files, checkpoints.damaged, checkpoints.try_checkpoint),
    "data": Kind(images.files, images.damaged, images.try_data),
}


def mutate(name: str, seeds: range, folder: Path) -> tuple[Counter[str], dict[int, Exception]]:
    """Try the files of these numbers: what came of them, counted, and what was no GemminerError, by number."""
    kind, found, faults = KINDS[name], Counter[str](), {}
    files = kind.files(folder)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    for seed in seeds:
        source = random.Random(seed)
        file = source.choice(list(files))
        path = folder / file
        path.write_bytes(kind.damaged(files[file], source))
        (folder / "seed").write_text(str(seed))  # which one it was, if it ends the process
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                found[kind.attempt(path).replace(str(path), "")[:60]] += 1
        except Exception as error:
            faults[seed] = error
        path.write_bytes(files[file])
    return found, faults
