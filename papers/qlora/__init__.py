"""Fine-tuning of a language model that is frozen in 4 bits: gradients flow through the quantised weights into adapters.

Dettmers, Pagnoni, Holtzman, Zettlemoyer: QLoRA: Efficient Finetuning of Quantized LLMs, NeurIPS 2023, arXiv 2305.14314.
"""
