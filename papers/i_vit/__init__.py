"""I-ViT: vision transformers whose whole inference graph is integer. Softmax and GELU share an exponential made of shifts and
one linear piece, layer normalisation takes its root by Newton steps in integers, and every change of scale is an integer
multiplication and a shift. Training simulates the same integers, so that what is deployed computes what was trained.

Zhikai Li and Qingyi Gu, ICCV 2023, arXiv 2207.01405.
"""
