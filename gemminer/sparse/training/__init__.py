"""Networks that compute and train with kept weights only."""
