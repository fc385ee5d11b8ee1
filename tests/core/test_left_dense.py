"""What is said about the weights that stay dense."""

from __future__ import annotations

from typing import Any

import pytest

from gemminer.core.errors import GemminerError
from gemminer.core.left_dense import LeftDense, groups, parsed, sentence


def rows(module: str, reason: str, count: int, weights: int = 10) -> list[LeftDense]:
    return [LeftDense(f"h.{i}.{module.lower()}.weight", weights, module, reason) for i in range(count)]


def test_two_hundred_layers_in_a_line_and_little_is_not_worth_one() -> None:
    text = sentence(rows("Own", "no rule", 200), 2000)
    assert text == (
        "50.0% of the weights of two and more dimensions stay dense: Own h.0.own.weight and 199 more "
        "(no rule for this module; include='h.*.own.weight' takes them in)"
    )
    assert sentence(rows("Own", "no rule", 1), 90) is None
    assert sentence(rows("Own", "no rule", 1), 89) is not None
    many = [row for i in range(9) for row in rows(f"Kind{i}", "frozen", 20, 9 - i)]
    assert str(sentence(many, 1)).endswith("(frozen; requires_grad_(True) makes them prunable), 100 more")
    assert len(groups(many)) == 9


def test_every_reason_says_what_to_do() -> None:
    words = {
        "embedding": "embeddings=True prunes them",
        "tied to an embedding": "tied to an embedding; embeddings=True",
        "excluded": "excluded, as asked",
        "made by prune": "made by torch.nn.utils.prune: prune.remove it first, or take Ticket.from_prune(model)",
        "made by orthogonal": "made by orthogonal from other parameters: remove that first",
    }
    for reason, text in words.items():
        assert text in str(sentence(rows("Linear", reason, 1), 1))


@pytest.mark.parametrize("given", [3, [3], [{"name": "a"}], [{"name": 1, "weights": 1, "module": "", "reason": ""}]])
def test_damaged_rows_are_refused(given: Any) -> None:
    with pytest.raises(GemminerError, match="left dense is damaged"):
        parsed(given)
