"""Scores: what they choose, and that a file gives back what was saved or says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gemminer.core.errors import GemminerError, UsageError
from gemminer.training.scores import Scores, chosen

CLASSES = torch.tensor([0] * 6 + [1] * 10 + [2] * 4)
EACH = torch.stack([torch.arange(20.0), torch.arange(20.0) + 2])


def made(**fields: Any) -> Scores:
    return Scores(**{"each": EACH, "kind": "el2n", "epochs": 3, "classes": CLASSES, "data": "20 examples", **fields})


def test_the_lowest_are_the_easiest_and_the_highest_the_hardest() -> None:
    scores = made()
    assert scores.values.tolist() == [i + 1.0 for i in range(20)]
    assert scores.choose(4, "easiest", balanced=False).tolist() == [0, 1, 2, 3]
    assert scores.choose(4, "hardest", balanced=False).tolist() == [16, 17, 18, 19]
    assert made(classes=None).choose(4, "hardest").tolist() == [16, 17, 18, 19]
    assert scores.choose(20, "random").tolist() == list(range(20))


def test_balanced_takes_as_many_of_each_class_and_the_rest_over_the_others() -> None:
    for which in ("easiest", "hardest", "random"):
        assert CLASSES[made().choose(9, which)].bincount().tolist() == [3, 3, 3]  # type: ignore[arg-type]
        assert CLASSES[made().choose(10, which)].bincount().tolist() == [4, 3, 3]  # type: ignore[arg-type]
        assert CLASSES[made().choose(17, which)].bincount().tolist() == [6, 7, 4]  # type: ignore[arg-type]
        assert len(made().choose(20, which)) == 20  # type: ignore[arg-type]
    assert made().choose(6, "easiest").tolist() == [0, 1, 6, 7, 16, 17]
    assert made().choose(6, "hardest").tolist() == [4, 5, 14, 15, 18, 19]


def test_chance_depends_on_the_seed_alone_and_decides_between_equal_scores() -> None:
    one, other = (made().choose(5, "random", seed=seed) for seed in (0, 1))
    assert torch.equal(one, made().choose(5, "random", seed=0))
    assert not torch.equal(one, other)
    same = made(each=torch.zeros(1, 20))
    found = same.choose(8, "easiest", balanced=False)
    assert found.tolist() != list(range(8))  # data that is sorted by class would give one class
    assert torch.equal(found, same.choose(8, "easiest", balanced=False))
    infinite = made(each=torch.tensor([[0.0, torch.inf] * 10]))
    assert set(infinite.choose(10, "hardest", balanced=False).tolist()) == set(range(1, 20, 2))


def test_all_is_all() -> None:
    assert chosen(0, "all", torch.zeros(7), None).tolist() == list(range(7))


@pytest.mark.parametrize(
    ("count", "which", "word"),
    [(21, "easiest", "is 21, and there are 20"), (0, "easiest", "at least 1"), (3, "easy", "easiest")],
)
def test_choices_that_cannot_be(count: int, which: Any, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        made().choose(count, which)


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    scores = made(cost={"epochs": 6.0}, facts={"model": "resnet20"}, seed=3)
    found = Scores.load(scores.save(tmp_path / "s.safetensors"))
    assert torch.equal(found.each, EACH)
    assert torch.equal(found.classes, CLASSES)  # type: ignore[arg-type]
    assert (found.kind, found.runs, found.epochs, found.seed) == ("el2n", 2, 3, 3)
    assert (found.cost, found.facts, found.data) == ({"epochs": 6.0}, {"model": "resnet20"}, "20 examples")
    assert found.checksum == scores.checksum != made(each=EACH + 1).checksum
    assert Scores.given(tmp_path / "s.safetensors").checksum == Scores.given(scores).checksum
    assert "0.1" not in repr(found)
    assert "<table" in found._repr_html_()
    inf = made(each=torch.tensor([[0.0, torch.inf]]), classes=None).save(tmp_path / "inf.safetensors")
    assert Scores.load(inf).values.tolist() == [0.0, torch.inf]


def test_files_that_are_no_scores_are_refused_in_a_sentence(tmp_path: Path) -> None:
    path = made().save(tmp_path / "s.safetensors")
    data = path.read_bytes()
    damaged = bytearray(data)
    damaged[-3] ^= 0x40
    for name, content, word in (
        ("cut", data[:-9], "truncated"),
        ("text", b"hello", "truncated"),
        ("bit", bytes(damaged), "damaged"),
        ("other", data.replace(b"gemminer.scores/1", b"gemminer.scores/2"), "scores/2"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(GemminerError, match=word):
            Scores.load(tmp_path / name)
    with pytest.raises(GemminerError, match="there is no file of scores"):
        Scores.load(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="must be a path"):
        Scores.given(3)
