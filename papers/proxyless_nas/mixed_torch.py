"""A place with binary gates in PyTorch; its twin is :mod:`papers.proxyless_nas.mixed_jax`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from papers.proxyless_nas.gates import MODES, Gates

Operation = Callable[[Tensor], Tensor]


def mixed_op(
    x: Float[Tensor, " *shape"],
    alpha: Float[Tensor, " candidates"],
    operations: Sequence[Operation],
    gates: Gates,
    mode: str = "full_v2",
    *,
    sees_inactive: bool = True,
) -> Float[Tensor, " *out_shape"]:
    """m(x) = sum_j g_j o_j(x), g one-hot (section 3.2), whose value is that of the active candidate.

    The gradient of alpha is the paper's estimate through the gates (section 3.2.1),

        dL/dalpha_i = sum_j <dL/dm, o_j(x)> p_j (delta_ij - p_i),     p = softmax(alpha) over the candidates involved.

    x and the weights get the gradients of the active candidate alone; weights of the others get none (mode "every": zeros).

    Args:
        operations: o_j, all to one shape; modules, or functions without weights of their own.
        gates: a draw of :func:`papers.proxyless_nas.gates.sample` in the same mode.
        mode: see :data:`papers.proxyless_nas.gates.MODES`; "path" gives alpha no gradient.
        sees_inactive: False, a control, leaves the products with inactive candidates out in mode "full_v2".

    Raises:
        ValueError: an unknown mode, other numbers of operations and alphas, gates of candidates that there are not, or other than
            two of them in mode "two".
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; wanted one of {', '.join(MODES)}")
    if len(operations) != len(alpha) or max(gates.involved) >= len(alpha):
        raise ValueError(
            f"{len(operations)} operations, {len(alpha)} alphas and gates {gates}; wanted as many, and gates among them"
        )
    if mode == "two" and len(gates.involved) != 2:
        raise ValueError(f'mode "two" wants gates that involve two candidates, not {len(gates.involved)}')
    active = operations[gates.active]
    if mode == "path":
        return active(x)
    gate = binarise(alpha, gates)
    if mode == "full_v2":
        others = {j: operations[j] for j in gates.involved if j != gates.active} if sees_inactive else {}
        weights = list(active.parameters()) if isinstance(active, nn.Module) else []
        return _OnePath.apply(x, gate, active, gates.active, others, *weights)
    output = gate[gates.active] * active(x)
    for j in gates.involved:
        if j != gates.active:
            if mode == "every":
                inactive = operations[j](x)
            else:
                with torch.no_grad():
                    inactive = operations[j](x)
            output = output + gate[j] * inactive
    return output


def binarise(alpha: Float[Tensor, " candidates"], gates: Gates) -> Float[Tensor, " candidates"]:
    """The one-hot gates, with the gradient of the probabilities that they were drawn from (as in BinaryConnect)."""
    p = probabilities(alpha, gates)
    one_hot = torch.zeros_like(alpha)
    one_hot[gates.active] = 1.0
    return one_hot + (p - p.detach())


def probabilities(alpha: Float[Tensor, " candidates"], gates: Gates) -> Float[Tensor, " candidates"]:
    """softmax(alpha) over the candidates involved, 0 for the others."""
    involved = list(gates.involved)
    if len(involved) == len(alpha):
        return torch.softmax(alpha, 0)
    return torch.zeros_like(alpha).index_put((torch.tensor(involved),), torch.softmax(alpha[involved], 0))


class _OnePath(torch.autograd.Function):
    """The active candidate forward; backward recomputes the others one at a time for their products with the gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gate: Tensor, active: Operation, index: int, others: dict[int, Operation], *weights: Tensor
    ) -> Tensor:
        inner = x.detach().requires_grad_(x.requires_grad)
        with torch.enable_grad():
            y = active(inner)
        # Zero hands its input on; as an output of this function it must be a tensor of its own.
        value = y.detach()
        ctx.save_for_backward(inner, value)
        ctx.y, ctx.index, ctx.others, ctx.weights, ctx.gate = y, index, others, weights, (len(gate), gate.device, gate.dtype)
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, value = ctx.saved_tensors
        dgate = None
        if ctx.needs_input_grad[1]:
            dgate = dy.new_zeros(ctx.gate[0])
            dgate[ctx.index] = (value * dy).sum()
            with torch.no_grad():
                for j, operation in ctx.others.items():
                    dgate[j] = (operation(x) * dy).sum()
            # Architecture parameters may live elsewhere than the network, and in more digits.
            dgate = dgate.to(ctx.gate[1], ctx.gate[2])
        wanted = [x, *ctx.weights]
        needed = [ctx.needs_input_grad[0], *ctx.needs_input_grad[5:]]
        asked = [tensor for tensor, need in zip(wanted, needed, strict=True) if need]
        found = iter(torch.autograd.grad(ctx.y, asked, dy, allow_unused=True) if asked and ctx.y.requires_grad else [])
        dx, *dweights = [next(found, None) if need else None for need in needed]
        ctx.y = None
        return dx, dgate, None, None, None, *dweights
