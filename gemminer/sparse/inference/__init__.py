"""Programs that infer with kept weights only."""
