"""Sequence parallelism: every device holds the whole model and one chunk of the sequence, and attention goes round a ring.

Li, Xue, Baranwal, Li, You (ACL 2023, arXiv 2105.13120) pass key chunks around a ring of devices until each has its rows of
the score matrix, then value chunks until each has its rows of the output. The number of devices is no longer limited by the
number of heads, and what a device keeps for the backward pass shrinks with it. Here the ring runs over real ranks of
torch.distributed and over a mesh of JAX devices, forward and backward, alone and crossed with data, pipeline and tensor
parallelism, and every byte that is sent or kept is counted.
"""
