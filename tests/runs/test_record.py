"""Records: written, read back, refused."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from gemminer.core.errors import GemminerError
from gemminer.core.statistics import Check, paired_test
from gemminer.core.ticket import Layer
from gemminer.runs import environment, record
from gemminer.runs.record import Record, parsed, read
from tests.mutations.kinds import mutate


@pytest.fixture
def result() -> Record:
    return Record(
        created=environment.now(),
        command="gemminer mine",
        method="gem-miner",
        options={"lr": 0.1},
        model="resnet20",
        model_options={},
        data="digits",
        data_options={},
        seed=0,
        recipe={},
        recipe_hash="abc",
        metric="accuracy",
        density=record.Density(asked=0.1, realised=0.1, kept=1, prunable=10),
        layers=[],
        accuracy=record.Accuracy(before=0.5, after=0.75, after_values=(0.7, 0.8), n=2),
        checks={},
        cost={"search": record.Cost(epochs=1, seconds=1.5, flops_dense=10, flops_sparse=5)},
        hardware=environment.hardware(),
        versions=environment.versions(),
        git=None,
    )


def test_a_record_comes_back(result: Record, tmp_path: Path) -> None:
    path = result.save(tmp_path / "record.json")
    assert read(path) == result
    assert read(str(tmp_path)) == result
    fields = json.loads(path.read_text())
    assert fields["schema"] == "gemminer.record/1"
    assert fields["accuracy"]["after"] == 0.75


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is not a gemminer record"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "is not a gemminer record"),
        ("7", "is not a gemminer record"),
        ("{}", "has schema None; this version reads 'gemminer.record/1'"),
        ('{"schema": "gemminer.record/2"}', "has schema 'gemminer.record/2'; this version reads"),
        ('{"schema": "gemminer.record/1"}', "is not a gemminer record"),
        (b"\xff\xfe", "is not a gemminer record"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path: Path, text: str | bytes, sentence: str) -> None:
    (tmp_path / "record.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(GemminerError, match=sentence) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_record_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(GemminerError, match=r"cannot read the record .*record\.json: No such file"):
        read(tmp_path)


def test_rows_of_a_ticket_and_its_checks_are_rows_of_the_record(result: Record, tmp_path: Path) -> None:
    """The same classes, so that there is no second list of their fields."""
    layer = Layer("a", (2, 3), 6, 2, 1 / 3, 2, 1)
    check = paired_test([0.9, 0.8], [0.5, 0.6])
    path = result.model_copy(update={"layers": [layer], "checks": {"shuffle": check}}).save(tmp_path / "record.json")
    again = read(path)
    assert again.layers == [layer]
    assert again.checks == {"shuffle": check}
    rows = json.loads(path.read_text())
    assert list(rows["layers"][0]) == [field.name for field in dataclasses.fields(Layer)]
    assert list(rows["checks"]["shuffle"]) == [field.name for field in dataclasses.fields(Check)]


def test_a_record_that_lacks_what_is_optional_is_read(tmp_path: Path) -> None:
    fields = {
        "schema": "gemminer.record/1",
        "method": "x",
        "model": "y",
        "data": "z",
        "density": {"asked": 0.1, "realised": 0.1},
        "layers": [{"name": "a", "kept": 0, "density": 0.0, "filters": None}],
        "accuracy": {"before": None, "n": None},
        "checks": {"shuffle": {"mean": 0.5, "verdict": "perhaps"}, "erk": {"mean": 0.5, "difference": None}},
        "cost": {"search": {"epochs": 1, "seconds": None}},
        "git": None,
        "of a later version": 1,
    }
    (tmp_path / "record.json").write_text(json.dumps(fields))
    found = read(tmp_path)
    assert found.layers == [Layer("a", (), 0, 0, 0.0, 0, 0)]
    assert (found.metric, found.seed, found.notes, found.accuracy.n) == ("accuracy", None, [], 0)
    assert [check.verdict for check in found.checks.values()] == ["not decided"] * 2
    assert math.isnan(found.checks["erk"].difference)
    assert math.isnan(found.cost["search"].seconds)
    with pytest.raises(GemminerError, match=r"no usable 'layers.0.kept'.*run the command that made it again"):
        parsed({**fields, "layers": [{"name": "a"}]}, "record.json")


def test_mutated_records_are_refused_in_one_sentence_or_drawn(tmp_path: Path) -> None:
    found, faults = mutate("records", range(60), tmp_path)
    assert not faults
    assert found["drawn"] > 20
