"""Weights on disk: checkpoints, their formats, conversion and checks."""
