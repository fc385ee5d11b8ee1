"""A comparison's records in one file: appended to, cut short, refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from gemminer.core.errors import GemminerError
from gemminer.runs import archive, compare, recipe, record
from gemminer.runs.archive import Archive, Entry, Keeper
from gemminer.runs.record import Record
from tests.runs.helpers import plan

GRID = plan(method=["uniform", "snip"], seed="0-1", dense=False)
CELLS = GRID.cells()
HEAD = Archive("gemminer compare --out runs/x", GRID.as_fields(), 1)


def result(number: int, **changes: Any) -> Record:
    own = CELLS[number].recipe
    fields = {
        "schema": record.SCHEMA,
        "method": own.method,
        "model": own.model,
        "data": own.data,
        "seed": own.seed,
        "recipe": own.model_dump(mode="json", exclude_defaults=True),
        "recipe_hash": CELLS[number].digest,
        "density": {"asked": 0.1, "realised": 0.1, "kept": 1, "prunable": 10},
        "layers": [],
        "accuracy": {"before": 0.1, "after": 0.1 * number, "n": 1},
    }
    return record.parsed({**fields, **changes}, "record.json")


def entry(number: int, **changes: Any) -> Entry:
    return Entry(CELLS[number].digest, CELLS[number].label, result(number, **changes))


def filled(path: Path, *numbers: int) -> Path:
    keeper = Keeper(path, HEAD)
    for number in numbers:
        keeper.keep(entry(number))
    return path


def test_cells_are_appended_and_come_back(tmp_path: Path) -> None:
    path = filled(tmp_path / archive.NAME, 2, 0)
    found = archive.read(path)
    assert (found.command, found.grid, found.threads, found.torn) == (HEAD.command, HEAD.grid, 1, False)
    assert found.entries == {CELLS[number].digest: entry(number) for number in (2, 0)}
    assert [str(cell) for cell in found.cells()] == [str(cell) for cell in CELLS]
    before = path.read_bytes()
    filled(path, 1)
    assert path.read_bytes().startswith(before), "what was there is not touched"
    assert set(archive.read(path).records) == {CELLS[number].digest for number in (0, 1, 2)}
    with gzip.open(path, "rt") as file:  # anybody's gzip reads it
        assert [json.loads(line).get("schema") for line in file] == [archive.SCHEMA, None, None, None]


def test_nothing_is_appended_twice_but_another_record_is(tmp_path: Path) -> None:
    path = filled(tmp_path / archive.NAME, 0, 1)
    before = path.read_bytes()
    filled(path, 0, 1)
    Keeper(path, Archive("another command", HEAD.grid, 1, {CELLS[0].digest: entry(0)}))
    assert path.read_bytes() == before
    Keeper(path, HEAD).keep(entry(0, accuracy={"after": 0.9}))
    assert archive.read(path).records[CELLS[0].digest].accuracy.after == 0.9


def test_a_record_counts_before_an_error(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path / archive.NAME, HEAD)
    failed = Entry(CELLS[0].digest, CELLS[0].label, error="no memory")
    keeper.keep(failed)
    assert archive.read(keeper.path).failures == {CELLS[0].digest: "no memory"}
    keeper.keep(entry(0))
    keeper.keep(failed)
    found = archive.read(keeper.path)
    assert not found.failures
    assert list(found.records) == [CELLS[0].digest]


@pytest.mark.parametrize("left", [1, 10, 100, -1])
def test_a_killed_append_spoils_nothing(tmp_path: Path, left: int) -> None:
    path = filled(tmp_path / archive.NAME, 0)
    whole = len(path.read_bytes())
    filled(path, 1)
    packed = path.read_bytes()
    path.write_bytes(packed[: whole + left] if left > 0 else packed[:left])
    found = archive.read(path)
    assert found.torn
    assert list(found.records) == [CELLS[0].digest]
    filled(path, 1, 2)
    again = archive.read(path)
    assert not again.torn
    assert len(again.records) == 3


def test_zeros_behind_the_last_cell_are_passed_over(tmp_path: Path) -> None:
    """What a file system leaves when the machine went down."""
    path = filled(tmp_path / archive.NAME, 0)
    path.write_bytes(path.read_bytes() + bytes(50))
    assert archive.read(path).torn
    assert len(archive.read(path).records) == 1


def test_another_grid_keeps_what_the_file_has(tmp_path: Path) -> None:
    path = filled(tmp_path / archive.NAME, 0, 1)
    smaller = plan(method=["uniform"], seed=1, dense=False)
    Keeper(path, Archive("x", smaller.as_fields(), 2))
    found = archive.read(path)
    assert (found.threads, [cell.digest for cell in found.cells()]) == (2, [smaller.cells()[0].digest])
    assert len(found.records) == 2


def test_cells_of_a_version_with_other_defaults_are_known_by_their_recipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, digests = filled(tmp_path / archive.NAME, 2, 0), [cell.digest for cell in CELLS]
    monkeypatch.setattr(recipe, "DEFAULTS", "others")
    cells = archive.read(path).cells()
    assert [str(cell) for cell in cells] == [str(cell) for cell in CELLS]
    assert [cell.digest == old for cell, old in zip(cells, digests, strict=True)] == [True, False, True, False]


def test_cells_of_a_grid_that_is_not_understood_any_more_are_those_of_the_file(tmp_path: Path) -> None:
    strange = plan(method=["synflow"], dense=False).as_fields()
    path = archive.write(tmp_path / "x.jsonl.gz", Archive("x", strange, 1, {CELLS[3].digest: entry(3)}))
    assert [cell.digest for cell in archive.read(path).cells()] == [CELLS[3].digest]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot read .*: No such file or directory; pass a comparison's records.jsonl.gz"),
        (b"", "not a file of gemminer's records: it has schema None"),
        (b"text", "not compressed by gzip"),
        ("[1]\n", "it has schema None; this version reads 'gemminer.results/1'"),
        ('{"schema": "gemminer.results/2"}\n', "schema 'gemminer.results/2'; this version reads"),
        ('{"schema": "gemminer.results/1"}\n{"cell', "is damaged .*: run its command again"),
        ('{"schema": "gemminer.results/1"}\n{"cell": 1}', "line 2 of .* is damaged"),
        (
            '{"schema": "gemminer.results/1"}\n{"cell": "a", "label": "b", "record": {}}',
            "line 2 of .* is not a gemminer record",
        ),
    ],
)
def test_what_is_no_file_of_records_is_one_sentence(tmp_path: Path, content: bytes | str | None, sentence: str) -> None:
    path = tmp_path / archive.NAME
    if content is not None:
        path.write_bytes(gzip.compress(content.encode()) if isinstance(content, str) else content)
    with pytest.raises(GemminerError, match=sentence) as caught:
        archive.read(path)
    assert "\n" not in str(caught.value)


def test_a_comparison_replaces_its_own_damaged_file_and_nobody_elses(tmp_path: Path) -> None:
    path = tmp_path / archive.NAME
    path.write_bytes(gzip.compress(b'{"schema": "gemminer.results/1"}\n{"cell'))
    filled(path, 0)
    assert len(archive.read(path).records) == 1
    path.write_bytes(gzip.compress(b'{"schema": "gemminer.results/2"}\n'))
    with pytest.raises(GemminerError, match="schema"):
        Keeper(path, HEAD)


def test_runs_are_packed_with_the_curves_that_are_asked_for(tmp_path: Path) -> None:
    for number in (0, 1):
        folder = tmp_path / str(number)
        folder.mkdir()
        result(number).save(folder / "record.json")
        rows = [{"phase": phase, "epoch": 1} for phase in ("search", "train:0", "check:shuffle:0")]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs = [(f"run {number}", tmp_path / str(number)) for number in (0, 1)]
    path = archive.write(tmp_path / "x.jsonl.gz", archive.from_folders(runs, "gemminer mine", ["search", "check"]))
    found = archive.read(path)
    assert [e.label for e in found.entries.values()] == ["run 0", "run 1"]
    assert [row["phase"] for row in found.entries[CELLS[0].digest].curves] == ["search", "check:shuffle:0"]
    assert all(not e.curves for e in archive.from_folders(runs, "").entries.values())
    assert archive.write(tmp_path / "y.jsonl.gz", found).read_bytes() == path.read_bytes()


def test_a_comparison_keeps_its_records_in_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each cell as it finishes, failures too, and nothing again when it is resumed."""
    execute = compare.execute.run_recipe

    def broken(recipe: Any, *args: Any, **more: Any) -> Any:
        if recipe.method == "snip":
            raise GemminerError("no memory")
        return execute(recipe, *args, **more)

    asked = plan(method=["uniform", "snip"], dense=False, checks=[])
    monkeypatch.setattr(compare.execute, "run_recipe", broken)
    first = compare.run_cells(asked, tmp_path, workers=0, threads=1)
    found = archive.read(tmp_path / archive.NAME)
    assert found.records == first.records
    assert found.failures == first.failures
    assert (found.grid, found.threads) == (json.loads(json.dumps(asked.as_fields())), 1)
    monkeypatch.setattr(compare.execute, "run_recipe", execute)
    second = compare.run_cells(asked, tmp_path, workers=0)
    found = archive.read(tmp_path / archive.NAME)
    assert found.records == second.records
    assert len(found.records) == 2
    before = (tmp_path / archive.NAME).read_bytes()
    compare.run_cells(asked, tmp_path, workers=0)
    assert (tmp_path / archive.NAME).read_bytes() == before
    (tmp_path / archive.NAME).unlink()  # as in a folder of an earlier version
    compare.run_cells(asked, tmp_path, workers=0)
    assert archive.read(tmp_path / archive.NAME).records == second.records
