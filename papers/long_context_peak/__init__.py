"""Long-context serving as an operating system's problem: every user's KV cache is a process that takes turns in a small memory.

Fu (2024, arXiv 2405.08944) derives from a device's peak figures how many users fit, how long prefill, decoding and the switch
from one user to another take, and finds one source of all the cost of long contexts: the size of the KV cache. Here the
formulas are one text for PyTorch and JAX, checked by walking real models; a simulator really switches; and the predictions
are tested on the machine at hand.
"""
