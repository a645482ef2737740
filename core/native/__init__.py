"""The CPU engine of our own: kernels compiled by LLVM, quantised weights, no torch."""
