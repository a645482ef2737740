"""Processes that torchrun started and that compute for one of them: evaluation and generation."""
