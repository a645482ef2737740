"""Evaluations whose answers are compared as text, or chosen by likelihood: nothing is run."""
