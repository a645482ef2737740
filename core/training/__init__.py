"""Training: recipes, the resolved run, the trainer and its resume state."""
