"""Compiled programs for inference, which compute with kept weights only."""
