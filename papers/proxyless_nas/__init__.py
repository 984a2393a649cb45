"""Search for a network directly on the task and the device: in each step only one candidate of every layer runs, chosen by
binary gates whose probabilities are trained, and latency becomes differentiable as an expectation over a table.

Cai, Zhu, Han: ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware, ICLR 2019, arXiv 1812.00332.
"""
