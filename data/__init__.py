"""From sources to rows of token ids. Nothing here imports torch."""
