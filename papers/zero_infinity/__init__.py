"""ZeRO-Infinity: data-parallel training whose weights, gradients and optimizer states lie in slices on GPU, CPU and NVMe.

Rajbhandari, Ruwase, Rasley, Smith and He (SC 2021, arXiv 2104.07857) split every tensor of the training state over all
ranks. A parameter is whole only while its layer computes; slices come from slow memory over all links at once, three hops
ahead of the computation, and layers too large for the device are computed in tiles. The model's code stays as it is.
"""
