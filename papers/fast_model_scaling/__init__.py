"""Networks that are scaled to the same multiply-adds by depth, width or resolution are about equally accurate, but have very
different numbers of activations, and on a GPU run time follows these. Put most of the scaling into width, and groups with it,
and activations grow with the root of the multiply-adds.

Dollár, Singh, Girshick: Fast and Accurate Model Scaling, CVPR 2021, arXiv 2103.06877.
"""
