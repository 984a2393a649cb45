"""Lightning Attention-2: causal linear attention whose time per token does not depend on the length of the sequence.

Qin, Sun, Li, Shen, Sun and Zhong (2024, arXiv 2401.04658) cut the sequence into blocks: inside a block the masked left
product (Q K^T . M) V, between blocks the right product Q (K^T V) with one d x e state that stays on the chip. The running
sum that made linear attention slow in practice becomes one small update for each block, forwards and backwards.
"""
