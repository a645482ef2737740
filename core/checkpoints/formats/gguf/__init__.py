"""GGUF, the one-file format of llama.cpp: read as a checkpoint, and written weight by weight.

    data/gguf.py             the container: metadata, tensors, where they lie
    data/tokenizer/gguf.py   the vocabulary
    types.py                 blocks of quantised values to float32
    facts.py                 the shape, end ids, chat template and lineage in the metadata
    read.py, write.py        the weights

wq and wk have Meta's order of rows, as llama.cpp's own converter makes it. Norms are float32 in
every file, as there.
"""
