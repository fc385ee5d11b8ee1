"""Which parameters of a model can be pruned."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from torch import nn

from gemminer.core.errors import UsageError
from gemminer.core.names import named_parameters

PRUNABLE_MODULES = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
    nn.Bilinear,
)
_ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def prunable_weights(
    model: nn.Module, *, exclude: Sequence[str] = (), embeddings: bool = False
) -> dict[str, nn.Parameter]:
    """The weights a ticket may remove: those of every convolution, linear layer and attention projection.

    First and last layer are included; biases and norm layers are not; embeddings are if asked for. Tied weights
    appear once, under their first name; frozen ones (`requires_grad=False`) not at all. The order is the model's.

    Args:
        exclude: parameter names to leave dense, as shell patterns ("head.*").
        embeddings: also prune `nn.Embedding` tables.

    Raises:
        UsageError: nothing is prunable, or a pattern matches nothing.
    """
    modules = PRUNABLE_MODULES + ((nn.Embedding, nn.EmbeddingBag) if embeddings else ())
    wanted: set[int] = set()
    for module in model.modules():
        names = ["weight"] if isinstance(module, modules) else []
        names += _ATTENTION_WEIGHTS if isinstance(module, nn.MultiheadAttention) else ()
        wanted |= {id(module._parameters[name]) for name in names if module._parameters.get(name) is not None}
    found = {name: p for name, p in named_parameters(model).items() if id(p) in wanted and p.requires_grad}
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in found.values()):
        raise UsageError("the model has lazy layers: run one batch through it before mining")
    for pattern in exclude:
        if not fnmatch.filter(found, pattern):
            raise UsageError(f"exclude={pattern!r} matches no prunable weight; they are: {', '.join(found)}")
    found = {name: p for name, p in found.items() if not any(fnmatch.fnmatch(name, x) for x in exclude)}
    if not found:
        raise UsageError(
            "the model has nothing to prune: no trainable weight of a convolution, linear layer or attention"
        )
    return found
