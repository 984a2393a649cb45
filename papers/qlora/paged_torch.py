"""AdamW whose state is paged, in PyTorch; the twin is :mod:`papers.qlora.paged_jax`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from papers.qlora.paging import PageStore, Slices


class PagedAdamW(torch.optim.Optimizer):
    """``torch.optim.AdamW`` with its two moments in a :class:`papers.qlora.paging.PageStore`, page by page.

    Each page is a slice of one parameter, updated by PyTorch's own rule, so parameters are those of AdamW to the bit.

    Args:
        params: float32 or float64 parameters on the CPU.
        store: where the state lives.
        lr, betas, eps, weight_decay: as in ``torch.optim.AdamW``.
        fused: use PyTorch's fused kernel, as ``AdamW(fused=True)`` does.
    """

    def __init__(
        self, params: Iterable[Any], store: PageStore, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 1e-2, *, fused: bool = False,
    ):  # fmt: skip
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.store, self.fused, self.steps = store, fused, 0
        parameters = [p for group in self.param_groups for p in group["params"]]
        for p in parameters:
            if p.dtype not in (torch.float32, torch.float64) or p.device.type != "cpu" or not p.is_contiguous():
                raise ValueError(f"a parameter is {p.dtype} on {p.device}; wanted contiguous float32 or float64 on the CPU")
        self._slices = {id(p): Slices(f"p{i}", p.numel(), p.element_size(), store.page) for i, p in enumerate(parameters)}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """Update every parameter that has a gradient; pages come and go in the order of the parameters."""
        assert closure is None, "this optimizer takes no closure"
        self.steps += 1
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, group)

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        flat, gradient, slices = p.view(-1), p.grad.reshape(-1), self._slices[id(p)]
        for name, part in slices.parts:
            count = part.stop - part.start
            with self.store.use(name) as page:
                # Every slice of a parameter is at the same step; the rule itself counts it up.
                adamw(
                    [flat[part]], [gradient[part]],
                    [page.torch(p.dtype, (count,))], [page.torch(p.dtype, (count,), start=slices.second)], [],
                    [torch.tensor(float(self.steps - 1))],
                    amsgrad=False, beta1=group["betas"][0], beta2=group["betas"][1], lr=group["lr"],
                    weight_decay=group["weight_decay"], eps=group["eps"], maximize=False, foreach=False, fused=self.fused,
                )  # fmt: skip
