"""Checkpoint formats: Meta, Hugging Face and GGUF, and what holds their weights."""
