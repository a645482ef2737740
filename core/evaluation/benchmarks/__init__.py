"""Benchmarks whose answers are programs: problems, samples, scores."""
