"""Checkpoints in other formats: Meta, Hugging Face, GGUF."""
