"""With 4-bit weights in the order in which tensor cores want them, an asynchronous pipeline and a striped partition, the product of
activations and weights keeps nearly the whole gain of reading a quarter of the bytes up to a batch of 16 to 32, not of 1 alone.

Frantar, Castro, Chen, Hoefler, Alistarh: MARLIN: Mixed-Precision Auto-Regressive Parallel Inference on Large Language Models
(PPoPP 2025, arXiv 2408.11743).
"""
