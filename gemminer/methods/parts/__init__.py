"""Parts that pruning methods share: one-shot scores, layer allocations, freezing schedules."""
