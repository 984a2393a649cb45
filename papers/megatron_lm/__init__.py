"""A trillion parameters train at half of peak when three ways of splitting a transformer are composed: tensors within a node,
stages of a pipeline across nodes, and data over the rest; a device that holds several small pieces of the pipeline instead
of one large one idles less.

Narayanan et al. (SC 2021, arXiv 2104.04473), "Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM".
"""
