"""Damage done to files at random, most of it with right checksums, and what must hold: `python -m tests.mutations`."""
