"""Layers that read some of the channels they are given, and give channels that are constant beside those they compute.

They are what stays of a layer whose neighbours cannot be cut with it: plain modules of their kind otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _Gapped:
    """A layer between two selections of channels: x -> layer(x[reads]), then (result, filler)[places].

    Buffers: `reads`, the channels that are read, or None for all; `places`, for each channel given its place among the
    computed ones and then the constants of `filler`, or None for the computed ones as they are.
    """

    reads: Tensor | None
    places: Tensor | None
    filler: Tensor | None
    axis: int

    def forward(self, x: Tensor) -> Tensor:
        if self.reads is not None:
            x = x.index_select(self.axis, self.reads)
        y: Tensor = super().forward(x)  # type: ignore[misc]
        if self.places is None or self.filler is None:
            return y
        shape = list(y.shape)
        shape[self.axis] = len(self.filler)
        beside = [1] * (y.dim() if self.axis == 1 else 1)
        beside[1 if self.axis == 1 else 0] = -1
        constants = self.filler.to(y.dtype).view(beside).expand(shape)
        return torch.cat([y, constants], self.axis).index_select(self.axis, self.places)


class GappedLinear(_Gapped, nn.Linear):
    """A linear layer between two selections of features."""


class GappedConv1d(_Gapped, nn.Conv1d):
    """A convolution between two selections of channels."""


class GappedConv2d(_Gapped, nn.Conv2d):
    """A convolution between two selections of channels."""


class GappedConv3d(_Gapped, nn.Conv3d):
    """A convolution between two selections of channels."""


class GappedBatchNorm1d(_Gapped, nn.BatchNorm1d):
    """A batch norm that gives constant channels beside its own."""


class GappedBatchNorm2d(_Gapped, nn.BatchNorm2d):
    """A batch norm that gives constant channels beside its own."""


class GappedBatchNorm3d(_Gapped, nn.BatchNorm3d):
    """A batch norm that gives constant channels beside its own."""


_KINDS: dict[type[nn.Module], type[Any]] = {
    nn.Linear: GappedLinear,
    nn.Conv1d: GappedConv1d,
    nn.Conv2d: GappedConv2d,
    nn.Conv3d: GappedConv3d,
    nn.BatchNorm1d: GappedBatchNorm1d,
    nn.BatchNorm2d: GappedBatchNorm2d,
    nn.BatchNorm3d: GappedBatchNorm3d,
}


def give_gaps(module: nn.Module, reads: Tensor | None, constants: Tensor | None) -> None:
    """Make a layer a gapped one of its kind.

    Args:
        module: a linear layer, a convolution or a batch norm, already cut.
        reads: (channels it is given,) boolean: those it reads; None for all.
        constants: (channels it gives,) the constant of each, NaN for those it computes, in order; None for none.
    """
    if reads is None and constants is None:
        return
    like = next((t for t in (*module.parameters(), *module.buffers())), None)
    device = None if like is None else like.device
    module.__class__ = _KINDS[type(module)]
    module.axis = -1 if isinstance(module, nn.Linear) else 1  # type: ignore[assignment]
    module.register_buffer("reads", None if reads is None else reads.nonzero().flatten().to(device))
    places = filler = None
    if constants is not None:
        alive = constants.isnan()
        different, which = constants[~alive].unique(return_inverse=True)
        places = torch.empty(len(constants), dtype=torch.long)
        places[alive] = torch.arange(int(alive.sum()))
        places[~alive] = which + int(alive.sum())
        kind = like.dtype if like is not None and like.is_floating_point() else torch.get_default_dtype()
        places, filler = places.to(device), different.to(device, kind)
    module.register_buffer("places", places)
    module.register_buffer("filler", filler)


def close_gaps(layer: Any, width: int) -> None:
    """Make a `GappedLinear` a plain layer of all the features around it, where zeros cost less than selections do.

    Args:
        layer: whose weight is (computed, read); it becomes (given, width).
        width: the features that it is given.
    """
    weight, bias = layer.weight.detach(), layer.bias
    bias = weight.new_zeros(len(weight)) if bias is None else bias.detach()
    if layer.reads is not None:
        whole = weight.new_zeros(len(weight), width)
        whole[:, layer.reads] = weight
        weight = whole
    if layer.places is not None:
        filler = layer.filler.to(weight.dtype)
        weight = torch.cat([weight, weight.new_zeros(len(filler), weight.shape[1])])[layer.places]
        bias = torch.cat([bias, filler])[layer.places]
    for name in ("reads", "places", "filler"):
        delattr(layer, name)
    del layer.axis
    layer.__class__ = nn.Linear
    layer.weight, layer.bias = (nn.Parameter(t, requires_grad=layer.weight.requires_grad) for t in (weight, bias))
    layer.out_features, layer.in_features = weight.shape
