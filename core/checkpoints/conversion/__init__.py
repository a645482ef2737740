"""Conversion between checkpoint layouts: request, plan, writing, comparison."""
