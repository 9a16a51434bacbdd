"""Kernels: ops of the twin computed faster, each with the op's own signature.

`choose` says which one an op takes, if any. Those in Triton (`lightning` to be read first, `segments`, `decode`,
`attend`, `remember`, `fused`) are imported by who takes them alone, since Triton exists for Linux alone; `chunks`,
`experts` and `norm` are plain PyTorch, `layer` puts a whole layer together, and `token` calls C.
"""
