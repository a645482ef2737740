"""The network: configuration, layers, attention and loss."""
