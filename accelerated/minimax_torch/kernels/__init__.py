"""Kernels: ops of the twin written in Triton, each with the op's own signature.

Nothing is imported here, since Triton exists for Linux alone; `minimax_torch.kernels.lightning` asks for it.
"""
