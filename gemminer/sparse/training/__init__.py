"""Networks that train on kept weights only."""
