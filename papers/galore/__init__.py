"""GaLore: full-parameter training whose optimizer state is as small as a low-rank adapter's.

Zhao, Zhang, Chen, Wang, Anandkumar and Tian (2024, arXiv 2403.03507, ICML 2024) project the gradient of each matrix, not
the weight, on its r leading singular directions, run Adam on the small matrix and project the update back. The directions
are found anew every T steps, so that the sum of the updates reaches full rank. With 8-bit states, and with every layer
updated as soon as its gradient is there, a model of 7 billion parameters is trained on a card of 24 GB.
"""
