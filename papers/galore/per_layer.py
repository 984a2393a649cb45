"""Updates layer by layer in PyTorch: a gradient is used as soon as it is complete, and freed.

The peak of gradient memory is then that of one matrix instead of all. What needs all gradients at once is given up: adding
up over several batches, and clipping by the global norm; gradients are clipped one by one.
Source: Zhao et al., arXiv 2403.03507, section 4.3 (per-layer weight updates, after Lv et al. 2023).
"""

from __future__ import annotations

import weakref

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from papers.galore.optimizer_torch import GaLore


def update_each_layer(optimizer: GaLore, accumulation: int = 1, clip: float | None = None) -> list[RemovableHandle]:
    """Have ``backward()`` make the optimizer's step, parameter by parameter; ``optimizer.step()`` then finds nothing to do.

    Learning rates are read from the groups at each step, so schedules work as ever.

    Args:
        accumulation: batches whose gradients are added up before a step; only 1 is possible.
        clip: largest norm of the gradient of a parameter.

    Returns:
        The hooks' handles; ``handle.remove()`` ends it.

    Raises:
        ValueError: accumulation above 1.
    """
    if accumulation != 1:
        raise ValueError(
            f"galore: accumulation is {accumulation}; updates layer by layer free each gradient at once, so it must be 1: "
            "enlarge the batch instead, or update after the whole backward pass"
        )

    def attach(parameter: Tensor, group: dict) -> RemovableHandle:
        def update(parameter: Tensor) -> None:
            if clip is not None:
                torch.nn.utils.clip_grad_norm_([parameter], clip)
            optimizer.update(parameter, group)
            parameter.grad = None

        return parameter.register_post_accumulate_grad_hook(update)

    return [attach(each, group) for group in optimizer.param_groups for each in group["params"] if each.requires_grad]


class LiveGradients:
    """Bytes of the gradients that exist at a time, measured: storages seen by hooks, until they are freed.

    Attach it before :func:`update_each_layer`, so that it sees each gradient first. ``peak`` is the high-water mark.
    """

    def __init__(self, parameters: list[Tensor]) -> None:
        self.live = self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        self.handles = [each.register_post_accumulate_grad_hook(self._see) for each in parameters if each.requires_grad]

    def _see(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        storage = parameter.grad.untyped_storage()
        if storage not in self._known:
            self._known.add(storage)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, size: int) -> None:
        self.live -= size
