"""The cheapest fleet for serving a language model is often a mix of GPU types. Measure once which rate each type sustains for
each size of request, and fill a bin packing by an integer program: up to 77 % cheaper than one type alone.

Griggs, Liu, Yu, Kim, Chiang, Cheung, Stoica: Mélange: Cost Efficient Large Language Model Serving by Exploiting GPU
Heterogeneity, 2024, arXiv 2404.14527.
"""
