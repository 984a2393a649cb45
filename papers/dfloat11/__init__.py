"""DFloat11 stores the exponents of bfloat16 weights as Huffman codes and everything else as it is: about 11 bits a weight,
70 % of the size, and every bit comes back, decoded on the fly by thousands of threads at once.

Zhang, Sui, Zhong, Chaudhary, Hu, Shrivastava: 70% Size, 100% Accuracy: Lossless LLM Compression for Efficient GPU Inference
via Dynamic-Length Float (NeurIPS 2025, arXiv 2504.11651).
"""
