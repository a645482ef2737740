"""Adapters (LoRA): folders as PEFT writes them, and merging into a base model."""
