"""Model, training, checkpoints and generation. Nothing here prints or exits."""
