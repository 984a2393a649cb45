"""GPUSQ-ViT: vision transformers pruned to the pattern that GPUs multiply at twice the rate, then quantised, both by distillation.

Yu, Chen, Gan and Fan (CVPR 2023, arXiv 2305.10727) keep two of every four weights (two of four pairs for 4-bit weights), let
the pruned model learn from the dense one by labels, soft logits and the feature maps of late blocks, and then train it with
quantised weights and activations under the pruned model as its teacher. A block whose feature was hard to mimic in the first
stage weighs less in the second.
"""
