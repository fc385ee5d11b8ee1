"""The one training loop, its rules and settings, evaluation, checkpoints and costs."""
