"""GaLore in PyTorch: optimizers whose state for a projected matrix has the size of the projected gradient.

A group with a ``rank`` is projected; its other keys are those of :class:`papers.galore.projection.Projection`. A group
without one is optimized as by the same rule at full rank:

    GaLoreAdamW([{"params": matrices, "rank": 128, "gap": 200, "scale": 0.25}, {"params": others}], lr=0.01)

For a matrix W (m x n) with gradient G, every ``gap`` steps P = U[:, :r] (m <= n) or Q = V^T[:r] (m > n) of G = U S V^T. With
R = P^T G or G Q^T the rule of the optimizer turns R into N, and W <- W - lr alpha P N, or N Q. Moments are kept when P changes.
Source: Zhao et al., arXiv 2403.03507, algorithm 2 and the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from papers.galore.projection import Projection
from papers.galore.projection_torch import add_back, dequantize, project, projectors, quantize

Parameters = Iterable[Tensor] | Iterable[dict[str, Any]]

_KEYS = ("rank", "gap", "scale", "side", "method", "signs")


class GaLore(Optimizer):
    """The walk over the parameters; a subclass gives the rule in :meth:`direction`.

    Args:
        defaults: hyper-parameters of the rule; ``lr`` and ``weight_decay`` are wanted.
        strict: a rank beyond the shorter side of a matrix is an error instead of a warning.
        quantize_projector: keep projectors in block-wise 8-bit codes, as states of the 8-bit rule are.

    State of a parameter: ``step``; ``left`` (m x r) and ``right`` (r x n), the projectors; ``skipped``, the refreshes that
    were left out because the gradient was not finite; the moments of the rule.

    Raises:
        ValueError: a parameter in a projected group that is no matrix, a gap or rank below 1, an unknown side.
    """

    block = 256
    """Elements of a projector in codes that share a scale."""
    decays_after = True
    """Weight decay follows the update; a rule that decays before it does so itself."""

    def __init__(self, params: Parameters, defaults: dict[str, Any], strict: bool = False, quantize_projector: bool = False):
        self.strict, self.quantize_projector = strict, quantize_projector
        super().__init__(params, defaults)  # type: ignore[arg-type]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if unknown := set(group) - {"params", "param_names", *self.defaults, *_KEYS}:
            raise ValueError(f"galore: a group has the unknown key {sorted(unknown)[0]!r}; wanted {', '.join(_KEYS)}")
        if group["lr"] < 0 or group["weight_decay"] < 0:
            raise ValueError(
                f"galore: lr is {group['lr']}, weight_decay is {group['weight_decay']}; wanted numbers that are not negative"
            )
        if "rank" in group:
            projection = Projection(**{key: group[key] for key in _KEYS if key in group})
            names = group.get("param_names") or [f"{len(self.param_groups) - 1}.{i}" for i in range(len(group["params"]))]
            for name, parameter in zip(names, group["params"], strict=True):
                projection.rank_for(name, tuple(parameter.shape), self.strict)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step for every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter, group)
        return loss

    @torch.no_grad()
    def update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        """One step for one parameter, from its ``grad``."""
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if not state:
            state["step"] = 0
        if "rank" not in group:
            state["step"] += 1
            direction, rate = self.direction(gradient, parameter, state, group)
            parameter.add_(direction, alpha=-rate)
        else:
            if state["step"] % group.get("gap", 200) == 0 and not self._refresh(gradient, state, group):
                return
            state["step"] += 1
            left, right = self._projectors(state, gradient)
            direction, rate = self.direction(project(gradient, left, right), parameter, state, group)
            add_back(parameter, direction, left, right, -rate * group.get("scale", 0.25))
        if group["weight_decay"] and self.decays_after:
            # Decoupled, and after the update: W <- W - lr wd W.
            parameter.mul_(1 - group["lr"] * group["weight_decay"])

    def direction(
        self, gradient: Tensor, parameter: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> tuple[Tensor, float]:
        """(N, step size): where the rule goes from a gradient, projected or not; it updates its moments in ``state``."""
        raise NotImplementedError

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        # PyTorch casts every tensor of the state to the type of its parameter, codes and scales too.
        parameters = [p for group in self.param_groups for p in group["params"]]
        for index, saved in state_dict["state"].items():
            for key, value in saved.items():
                if isinstance(value, Tensor):
                    self.state[parameters[index]][key] = value.to(parameters[index].device, copy=True)

    def skipped(self) -> int:
        """Refreshes left out so far because the gradient was not finite."""
        return sum(state.get("skipped", 0) for state in self.state.values())

    def _refresh(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> bool:
        """Find new projectors; False if the gradient is not finite: then nothing of this parameter changes, and the next
        gradient tries again."""
        projection = Projection(**{key: group[key] for key in _KEYS if key in group})
        if not gradient.is_meta and not bool(torch.isfinite(gradient).all()):
            state["skipped"] = state.get("skipped", 0) + 1
            return False
        rank = min(projection.rank, *gradient.shape)
        for name, projector in zip(("left", "right"), projectors(gradient, rank, projection), strict=True):
            if projector is None:
                continue
            if self.quantize_projector:
                state[name], state[f"{name}_scale"] = quantize(projector, self.block)
            else:
                state[name] = projector
        return True

    def _projectors(self, state: dict[str, Any], gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if not self.quantize_projector:
            return state.get("left"), state.get("right")
        return tuple(  # type: ignore[return-value]
            dequantize(state[name], state[f"{name}_scale"], self.block, gradient.dtype) if name in state else None
            for name in ("left", "right")
        )


class GaLoreAdamW(GaLore):
    """AdamW in the form of Hugging Face: epsilon beside the uncorrected root, the decay after the update.

    M <- beta1 M + (1 - beta1) R, V <- beta2 V + (1 - beta2) R^2, N = M / (sqrt(V) + epsilon), with the step size
    lr sqrt(1 - beta2^t) / (1 - beta1^t). M and V have the shape and the dtype of R.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}, **options)

    def direction(
        self, gradient: Tensor, parameter: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> tuple[Tensor, float]:
        if "mean" not in state:
            state["mean"], state["square"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
        beta1, beta2 = group["betas"]
        mean, square = state["mean"], state["square"]
        mean.mul_(beta1).add_(gradient, alpha=1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = square.sqrt().add_(group["eps"])
        t = state["step"]
        return torch.div(mean, root, out=root), group["lr"] * math.sqrt(1 - beta2**t) / (1 - beta1**t)


class GaLoreAdamW8bit(GaLore):
    """Adam whose moments are block-wise 8-bit codes: uint8 and one float32 scale for each 256 of them.

    N = (M / (1 - beta1^t)) / (sqrt(V) / sqrt(1 - beta2^t) + epsilon), from moments before they are rounded again. Moments of
    fewer than ``least`` elements stay in float32.

    Args:
        grid: round as bitsandbytes does on the CPU; see :func:`papers.galore.kernel.adam8bit`.
        block: elements that share a scale; bitsandbytes takes 256, and took 2048 at the time of the paper.
        least: elements of R from which on codes are used.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        block: int = 256,
        grid: bool = False,
        least: int = 4096,
        **options: Any,
    ) -> None:
        self.block, self.grid, self.least = block, grid, least
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}, **options)

    def direction(
        self, gradient: Tensor, parameter: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> tuple[Tensor, float]:
        from papers.galore.kernel import adam8bit

        beta1, beta2 = group["betas"]
        flat = gradient.reshape(-1)
        coded = flat.numel() >= self.least
        if "mean" not in state:
            kind = torch.uint8 if coded else torch.float32
            for name in ("mean", "square"):
                state[name] = torch.zeros_like(gradient, dtype=kind)
                if coded:
                    state[f"{name}_scale"] = flat.new_zeros(-(-flat.numel() // self.block), dtype=torch.float32)
        mean, square, t = state["mean"].view(-1), state["square"].view(-1), state["step"]
        if not coded:
            flat = flat.float()
            mean.mul_(beta1).add_(flat, alpha=1 - beta1)
            square.mul_(beta2).addcmul_(flat, flat, value=1 - beta2)
            root = (square.sqrt() / math.sqrt(1 - beta2**t)).add_(group["eps"])
            direction = torch.div(mean, root, out=root).div_(1 - beta1**t)
        else:
            direction, mean, state["mean_scale"], square, state["square_scale"] = adam8bit(
                flat, mean, state["mean_scale"], square, state["square_scale"],
                step=t, beta1=beta1, beta2=beta2, epsilon=group["eps"], block=self.block, grid=self.grid,
                # Bytes that are counted on the meta device are those of the GPU's kernel.
                backend="triton" if flat.is_meta else None,
            )  # fmt: skip
            state["mean"], state["square"] = mean.view(gradient.shape), square.view(gradient.shape)
        return direction.view(gradient.shape).to(gradient.dtype), group["lr"]


class GaLoreSGD(GaLore):
    """SGD with momentum on the projected gradient: B <- mu B + R, N = B (N = R without momentum), as torch.optim.SGD."""

    def __init__(
        self, params: Parameters, lr: float = 1e-3, momentum: float = 0.0, weight_decay: float = 0.0, **options: Any
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}, **options)

    def direction(
        self, gradient: Tensor, parameter: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> tuple[Tensor, float]:
        if not group["momentum"]:
            return gradient, group["lr"]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(gradient)
        return state["momentum"].mul_(group["momentum"]).add_(gradient), group["lr"]


class GaLoreAdafactor(GaLore):
    """Adafactor (Shazeer and Stern 2018) on the projected gradient: the second moment as one row and one column.

    With b_t = 1 - t^decay_rate: rows <- b_t rows + (1 - b_t) mean_j(R^2 + eps_1), columns likewise over i; N = R / sqrt(V) with
    V_ij = rows_i columns_j / mean(rows), divided by max(1, RMS(N) / clip). With ``scale_parameter`` the step size is
    lr max(eps_2, RMS(W)); with ``beta1`` N is averaged. The weights are decayed before the update, by that step size.
    """

    decays_after = False

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        beta1: float | None = None,
        weight_decay: float = 0.0,
        scale_parameter: bool = False,
        **options: Any,
    ) -> None:
        defaults = {"lr": lr, "eps": eps, "clip_threshold": clip_threshold, "decay_rate": decay_rate, "beta1": beta1}
        super().__init__(params, {**defaults, "weight_decay": weight_decay, "scale_parameter": scale_parameter}, **options)

    def direction(
        self, gradient: Tensor, parameter: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> tuple[Tensor, float]:
        factored = gradient.ndim >= 2
        if "rows" not in state and "square" not in state:
            if factored:
                state["rows"], state["columns"] = gradient.new_zeros(gradient.shape[:-1]), gradient.new_zeros(gradient.shape[1:])
            else:
                state["square"] = torch.zeros_like(gradient)
            if group["beta1"] is not None:
                state["mean"] = torch.zeros_like(gradient)
        keep = 1 - state["step"] ** group["decay_rate"]
        squared = gradient.square() + group["eps"][0]
        if factored:
            rows = state["rows"].mul_(keep).add_(squared.mean(-1), alpha=1 - keep)
            columns = state["columns"].mul_(keep).add_(squared.mean(-2), alpha=1 - keep)
            update = (rows / rows.mean(-1, keepdim=True)).rsqrt()[:, None] * columns.rsqrt() * gradient
        else:
            update = state["square"].mul_(keep).add_(squared, alpha=1 - keep).rsqrt() * gradient
        update /= (_rms(update) / group["clip_threshold"]).clamp(min=1.0)
        rate = group["lr"]
        if group["scale_parameter"]:
            rate *= max(group["eps"][1], _rms(parameter).item())
        if group["weight_decay"]:
            parameter.mul_(1 - rate * group["weight_decay"])
        if group["beta1"] is None:
            return update, rate
        # The published rule averages steps, learning rate included.
        return state["mean"].mul_(group["beta1"]).add_(update, alpha=(1 - group["beta1"]) * rate), 1.0


def _rms(tensor: Tensor) -> Tensor:
    return tensor.norm(2) / tensor.numel() ** 0.5
