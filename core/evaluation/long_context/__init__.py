"""Long-context quality: perplexity by position and key retrieval."""
