"""torchvision's ImageNet weights."""

from __future__ import annotations

import sys
from collections.abc import Collection
from contextlib import redirect_stdout
from typing import Any

import torch
from torch import nn

from gemminer.core.errors import GemminerError


def load_pretrained(net: nn.Module, source: Any, fresh: Collection[str]) -> None:
    """Load torchvision's weights, which are downloaded if they are not on this machine.

    Args:
        source: a member of one of torchvision's enumerations of weights.
        fresh: what keeps its own draw where its shape is another, as a stem or a classifier may.

    Raises:
        GemminerError: they cannot be had, or lack a tensor.
    """
    try:
        with redirect_stdout(sys.stderr):  # torch.hub prints the address; stdout belongs to --json
            theirs = source.get_state_dict(check_hash=True, map_location="cpu", weights_only=True)
        ours = net.state_dict()
        fits = {key: w for key, w in theirs.items() if key in ours and w.shape == ours[key].shape}
        if missing := ours.keys() - fits.keys() - set(fresh):
            raise ValueError(f"{min(missing)} is missing")
    except Exception as error:  # network, disk, hash, unpickler: the remedy is the same
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise GemminerError(
            f"cannot load the pretrained weights {source} ({reason}): leave pretrained out "
            f"or put a sound copy of {source.url} into {torch.hub.get_dir()}/checkpoints"
        ) from None
    net.load_state_dict(fits, strict=False)
