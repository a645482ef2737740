"""What a model assigns to given text: loss and perplexity."""
