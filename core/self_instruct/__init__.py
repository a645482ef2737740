"""Self-instruct: instruction data that a model makes itself, and tests filter (PAPER 7)."""
