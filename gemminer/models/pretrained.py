"""torchvision's ImageNet weights in our networks."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout

import torch
from torch import nn

from gemminer.core.errors import GemminerError


def load_pretrained(net: nn.Module, weights: str) -> None:
    """Load torchvision's weights; a stem or classifier of another shape keeps its fresh draw."""
    from torchvision.models import get_weight  # a second of import time for two networks only

    source = get_weight(weights)
    try:
        with redirect_stdout(sys.stderr):  # torch.hub prints the address; stdout belongs to --json
            theirs = source.get_state_dict(check_hash=True, map_location="cpu", weights_only=True)
        ours = net.state_dict()
        fits = {key: w for key, w in theirs.items() if key in ours and w.shape == ours[key].shape}
        if missing := ours.keys() - fits.keys() - {"conv1.weight", "fc.weight", "fc.bias"}:
            raise ValueError(f"{min(missing)} is missing")
    except Exception as error:  # network, disk, hash, unpickler: the remedy is the same
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise GemminerError(
            f"cannot load the pretrained weights {weights} ({reason}): leave pretrained out "
            f"or put a sound copy of {source.url} into {torch.hub.get_dir()}/checkpoints"
        ) from error
    net.load_state_dict(fits, strict=False)
