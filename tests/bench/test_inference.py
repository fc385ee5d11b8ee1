"""The network that inference is measured on."""

from __future__ import annotations

from gemminer.bench import inference
from gemminer.bench.measure import Setup
from gemminer.core.prunable import prunable_weights


def test_the_network_of_infer_has_the_tickets_zeros_and_lived_in_norms() -> None:
    model = inference.network(Setup("resnet20"))
    kept = sum(int(p.count_nonzero()) for p in prunable_weights(model).values())
    assert kept == round(0.0144 * 268_336)
    assert not model.training
    assert (model.bn1.running_var - 1).abs().max() > 0.1
