"""Evaluation: what a model can do, by the protocols of the paper."""
