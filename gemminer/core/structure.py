"""The dead units of a network: filters and neurons that are constant, or that nothing reads, layer by layer.

constant    all that a unit reads is zero or constant: forwards, through every call (`constants`)
not read    no result depends on it: backwards (`needs`)
            both by the rule of sums that `sparse.compile` goes by as well (`folding`)
bundles     channels that meet in sums, norms and concatenations, and go together or not at all (`bundles`)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gemminer.core.bundles import Bundles
from gemminer.core.constants import Constants, Taps
from gemminer.core.folding import foldable, read
from gemminer.core.needs import Needs
from gemminer.core.tracing import Call, Trace, traced

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Units:
    """What is known of a layer's units.

    Args:
        name: of the layer.
        call: where it runs.
        axis: of channels, in what it reads and gives.
        dead: (units,) constants and those that nothing reads, here and behind the batch norm that follows.
        constants: (units,) of the layer itself, 0 where nothing reads a unit, NaN where it is alive.
        behind: (units,) the same of what the batch norm gives.
        norm: the name of the batch norm that alone reads this layer.
        given: (inputs,) constants it reads, NaN where there are none.
        absent_in: (inputs,) channels that are removed before it.
        absent_out: (units,) channels that are removed behind it, and behind its norm.
    """

    name: str
    call: Call
    axis: int
    dead: Tensor
    constants: Tensor
    behind: Tensor
    norm: str | None
    given: Tensor
    absent_in: Tensor
    absent_out: Tensor

    def foldable(self, weight: Tensor) -> Tensor:
        """(inputs,): constants that a bias can hold, whatever the border."""
        if weight.dim() == 2:
            return ~self.given.isnan()
        taps = Taps(self.call, weight)
        left = ~foldable(self.given.numpy()[taps.channel], taps.inside)
        held = read(taps.row[left], taps.channel[left], np.ones(len(weight), np.bool_), len(self.given))
        return ~self.given.isnan() & ~torch.from_numpy(held)


class Structure:
    """The layers of a model whose weights can be cut, with their dead units.

    Args:
        model: in eval mode; its zeros are those of its weights.
        args: an example's arguments.
        kwargs: those by name.
        training: whether constants must be the same in eval mode and in training.
        bundles: whether channels are removed between layers too, not inside them alone.
        resize: whether that may change sizes that the model's reshapes name, as heads of attention do.
        even: whether convolutions keep whole blocks of channels.
    """

    def __init__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        training: bool = True,
        bundles: bool = True,
        resize: bool = True,
        even: bool = False,
    ) -> None:
        self._modules = dict(model.named_modules())
        self._own = _cuttable(model)
        self.trace: Trace = traced(model, args, kwargs)
        self.constants = Constants(self.trace, training=training)
        self.needs = Needs(self.trace, self.constants)
        calls = Counter(call.module for call in self.trace.calls)
        readers = self.trace.readers()  # other code may read a layer's weight too: F.linear(x, self.layer.weight.t())
        alone = [c for c in self.trace.calls if all(readers[i] == [c] for i in c.inputs[1:])]
        own = [c for c in alone if self._is_own(c) and calls[c.module] == 1]
        self.calls = {call.module: call for call in own}
        self.bundles = Bundles(self.trace, self.needs, own if bundles else (), resize=resize, even=even)
        self.layers: dict[str, Units] = {}
        for name, call in self.calls.items():
            if isinstance(self._modules[name], LAYERS):
                self.layers[name] = self._units(name, call, readers)

    @property
    def norms(self) -> dict[str, Tensor]:
        """The channels that are removed from each batch norm, by its name."""
        return {
            name: self.bundles.absent(call.outputs[0], 1)
            for name, call in self.calls.items()
            if isinstance(self._modules[name], NORMS)
        }

    @property
    def heads_left(self) -> dict[str, int]:
        """How many heads of attention are dead and stay, by the module that computes them."""
        found = {}
        for call in self.trace.calls:
            product = call.name == "matmul" and call.inputs[0] in self.constants.means
            attention = product or call.name == "scaled_dot_product_attention"
            if attention and len(self.trace.shapes[call.outputs[0]]) == 4:
                dead, gone = self.bundles.heads(call)
                if count := int((dead & ~gone).sum()):
                    found[call.module] = count
        return found

    @property
    def uncut(self) -> list[str]:
        """Layers with weights that cannot be cut: shared, run more than once or never, or of a class of their own."""
        kinds = (nn.modules.conv._ConvNd, nn.Linear)
        return [n for n, m in self._modules.items() if isinstance(m, kinds) and n not in self.layers]

    def _is_own(self, call: Call) -> bool:
        module = self._modules[call.module]
        kind = "batch_norm" if isinstance(module, NORMS) else "linear" if isinstance(module, nn.Linear) else "conv"
        once = call.module in self._own and self.trace.runs[call.module] == 1
        return once and call.name.startswith(kind) and not call.writes

    def _units(self, name: str, call: Call, readers: Mapping[int, list[Call]]) -> Units:
        source, made = call.inputs[0], call.outputs[0]
        axis = len(self.trace.shapes[made]) - 1 if call.name == "linear" else 1
        constants = self._dead(made, axis)
        behind, norm = constants, None
        following = readers.get(made, [])
        if len(following) == 1 and made not in self.trace.outputs and axis == 1:
            after = following[0]
            if after.name == "batch_norm" and self.calls.get(after.module) is after and after.inputs[0] == made:
                behind, norm = self._dead(after.outputs[0], 1), after.module
        return Units(
            name,
            call,
            axis,
            ~constants.isnan() & ~behind.isnan(),
            constants,
            behind,
            norm,
            self.constants.channels(source, axis),
            self.bundles.absent(source, axis),
            self.bundles.absent(made, axis),
        )

    def _dead(self, index: int, axis: int) -> Tensor:
        """(channels,): constants, 0 where nothing reads what varies, NaN where a channel is alive."""
        needed = self.needs[index].movedim(axis, 0).flatten(1).any(1)
        constants = self.constants.channels(index, axis)
        return constants.masked_fill(constants.isnan() & ~needed, 0.0)


def _cuttable(model: nn.Module) -> set[str]:
    """Names of layers of PyTorch's own classes, whose weights are theirs alone and not made from others."""
    owners = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
    found = set()
    for name, module in model.named_modules():
        if type(module) not in (*LAYERS, *NORMS) or module._forward_hooks or module._forward_pre_hooks:
            continue
        own = [p for p in module._parameters.values() if p is not None]
        made = isinstance(module, LAYERS) and module._parameters.get("weight") is None
        if not made and all(owners[id(p)] == 1 for p in own) and getattr(module, "padding_mode", "zeros") == "zeros":
            found.add(name)
    return found
