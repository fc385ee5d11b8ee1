"""Records: written, read back, refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from gemminer.core.errors import GemminerError
from gemminer.runs import environment, record
from gemminer.runs.record import Record, read


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


def test_every_row_of_a_ticket_fits_a_record() -> None:
    from gemminer.core.statistics import Check
    from gemminer.core.ticket import Layer

    assert {f.name for f in dataclasses.fields(Layer)} == set(record.LayerRow.model_fields)
    assert {f.name for f in dataclasses.fields(Check)} == set(record.CheckRow.model_fields)
