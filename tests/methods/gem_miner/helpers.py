"""Options of short searches."""

from __future__ import annotations

from typing import Any

from gemminer.methods.gem_miner import Options


def fixed(**options: Any) -> Options:
    """Options of a search with a fixed lambda, as published."""
    return Options(**{"ridge": 3e-4, **options})


def options_for_fit(options: Options) -> Any:
    """What `find` hands to the loop: the ridge as the optimiser's L2 term."""
    import dataclasses

    from gemminer.training.settings import Settings

    fields = {f.name: getattr(options, f.name) for f in dataclasses.fields(Settings)}
    return Settings(**{**fields, "weight_decay": 2 * (options.ridge or 0.0)})
