"""A GPU and a CPU that read all weights for every token: t = layers launch + bytes / bandwidth, energy = power t.

One constant of each is fitted on one model (:data:`published.CALIBRATION`): the launch time of a layer on the GPU, where most of
the time goes there, and the bandwidth on the CPU. The others come from data sheets. The GPU holds 16-bit weights, the CPU, which has
no 16-bit arithmetic, 32-bit ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from common import hardware
from common.architecture import Transformer
from common.hardware import counts
from papers.pim_gpt import published


@dataclass(frozen=True)
class Platform:
    """Seconds of launching a layer, bytes a second, bytes of a number, watts."""

    name: str
    launch: float
    bandwidth: float
    element: float
    watts: float

    def seconds(self, architecture: Transformer, tokens: int) -> float:
        """Of one token, on average over the first ``tokens`` positions."""
        return architecture.depth * self.launch + _bytes(architecture, tokens, self.element) / self.bandwidth


def gpu(architecture: Transformer, seconds: float, tokens: int) -> Platform:
    """The T4 whose launch time makes this model's token take ``seconds``."""
    device = hardware.device("t4")
    bandwidth = device.bandwidth * published.GPU_BANDWIDTH_SHARE
    launch = (seconds - _bytes(architecture, tokens, 2.0) / bandwidth) / architecture.depth
    return Platform(device.name, launch, bandwidth, 2.0, device.power)


def cpu(architecture: Transformer, seconds: float, tokens: int) -> Platform:
    """The Xeon whose bandwidth makes this model's token take ``seconds``."""
    launch = published.XEON["launch"]
    bandwidth = _bytes(architecture, tokens, 4.0) / (seconds - architecture.depth * launch)
    return Platform("Intel Xeon Gold 6154", launch, bandwidth, 4.0, published.XEON["watts"])


def without_launch(platform: Platform) -> Platform:
    return replace(platform, launch=0.0)


def _bytes(architecture: Transformer, tokens: int, element: float) -> float:
    """Matrices once, and on average half of the keys and values of ``tokens`` positions."""
    found = counts.operators(architecture, tokens=1)
    read = sum(found[name].parameters for name in ("queries", "keys", "values", "output", "feed_forward", "head"))
    return element * read + counts.cache_bytes(architecture, (tokens + 1) / 2, element)
