"""The SentencePiece tokenizer and its fast exact encoder."""
