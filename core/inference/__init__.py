"""Generation: the decoding engine, its cache, sampling and token healing."""
