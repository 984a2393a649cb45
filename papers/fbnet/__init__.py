"""FBNet: networks found by gradient descent on the latency of the device that they are for.

Wu, Dai, Zhang, Wang, Sun, Wu, Tian, Vajda, Jia and Keutzer (2019, arXiv 1812.03443, CVPR 2019) let each of 22 layers choose one
of nine blocks at random. The choice is relaxed by the Gumbel-softmax trick, latency is a sum over a table measured on the
device, and so the distribution of architectures is trained with the weights, by stochastic gradient descent. Architectures
are then sampled from it and trained from scratch.
"""
