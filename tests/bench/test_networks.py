"""The benchmarks' tickets: the published layer densities, and those between."""

from __future__ import annotations

import pytest

from gemminer.bench import networks
from gemminer.core.prunable import prunable_weights

ANCHORS = (0.5, 0.0372, 0.0144, 0.0059)


@pytest.mark.parametrize("density", ANCHORS)
def test_anchors_are_the_published_layer_densities(density: float) -> None:
    kept = networks.RESNET20_KEPT[ANCHORS.index(density)]
    sizes = [p.numel() for p in prunable_weights(networks.build("resnet20")).values()]
    assert sum(sizes) == 268_336
    assert sum(kept) / sum(sizes) == pytest.approx(density, rel=3e-3)
    assert networks.between_gems(sizes, sum(kept) / sum(sizes)) == pytest.approx(
        [k / n for k, n in zip(kept, sizes, strict=True)]
    )


@pytest.mark.parametrize("name", networks.INPUTS)
@pytest.mark.parametrize("density", [1.0, 0.3, 0.05, 0.0144, 0.002])
def test_tickets_keep_exactly_the_density(name: str, density: float) -> None:
    if name == "vgg16" and density not in (0.3, 0.0144):
        pytest.skip("14.7 million random numbers a time")
    ticket = networks.ticket_of(name, networks.build(name), density)
    assert ticket.kept == round(density * ticket.prunable)


def test_between_two_gems_each_layer_is_between_theirs() -> None:
    model = networks.build("resnet20")
    low, mid, high = (networks.ticket_of("resnet20", model, d).per_layer() for d in (0.0144, 0.025, 0.0372))
    assert all(a.kept <= b.kept <= c.kept for a, b, c in zip(low, mid, high, strict=True))
    assert low[0].density > 20 * low[-2].density  # early layers are kept, late ones are not
