"""What searches for networks share: descriptions that are built in both frameworks and counted, and tables of latencies.

    net = mobilenet_v2(1.0)                                     # a description; imports no framework
    net.count(224, 224).macs                                    # 300,774,272, in closed form
    from common.nas.network_torch import Network                # or network_jax; the same weights in both
    table = LatencyTable.measured({key: function, ...}, "torch, 1 thread", file)     # this machine's, kept in a file

:mod:`common.nas.counting` counts any PyTorch module or JAX function.
"""

from __future__ import annotations

from .latency import LatencyTable
from .network import ConvNet, Convolution, Count, InvertedResidual, divisible, mobilenet_v2

__all__ = ["ConvNet", "Convolution", "Count", "InvertedResidual", "LatencyTable", "divisible", "mobilenet_v2"]
