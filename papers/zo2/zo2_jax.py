"""ZO2 in JAX: the blocks live in pinned host memory and come to the device by ``device_put``; twin: ``zo2_torch``.

What moves is copied by the runtime while what was dispatched before is computed: the next block is sent for before a block's
computation is queued. Arrays are immutable, so a block that leaves is a new array in host memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array, Int

from common.architecture import Transformer
from common.offload import Trace
from papers.zo2.kernel import seed_words
from papers.zo2.mezo_jax import Key, Parts, next_token_loss, noise, shift, update
from papers.zo2.rule import Rule
from papers.zo2.units import Unit


class ZO2:
    """MeZO-SGD on a decoder whose blocks are in host memory; one visit of each block a step.

    Args:
        weights: by torch's names, in torch's layouts.
        wire: dtype of the blocks on the host and in the copies; None: dtype.
        overlap: whether the next block is sent for before the computation of a block, or after its copy back.

    Attributes:
        trace: bytes of every copy, lanes "upload" and "offload"; times are of the dispatch.
        peak: most bytes of live arrays in device memory at any visit, all arrays of the process counted.
    """

    def __init__(
        self,
        architecture: Transformer,
        weights: Mapping[str, np.ndarray],
        rule: Rule,
        *,
        dtype: Any = jnp.float32,
        wire: Any = None,
        overlap: bool = True,
        trace: Trace | None = None,
    ) -> None:
        self.parts, self.rule, self.overlap, self.trace = Parts(architecture, dtype), rule, overlap, trace or Trace()
        device = jax.devices()[0]
        self._host, self._device = (SingleDeviceSharding(device, memory_kind=kind) for kind in ("pinned_host", "device"))
        self.wire = jnp.dtype(wire or dtype)
        self.load(lambda _: weights)
        self.pending: tuple[float, Array] | None = None
        self.peak = 0
        # Compiled for each instance: a program that is kept for the class would keep the instance and its weights alive.
        for name in ("_enter", "_visit", "_leave", "_pay_block", "_pay_ends", "_plain", "_loss"):
            setattr(self, name, jax.jit(getattr(self, name)))

    def step(self, batch: Int[Any, "batch length"], seed: int) -> float:
        """One step on a batch, inputs ``[:, :-1]`` and targets ``[:, 1:]``; returns L+. Its update waits for the next visit.

        Raises:
            FloatingPointError: a loss is not finite; the weights are as before the step.
        """
        now, owed, cut = jnp.asarray(seed_words(seed)), self._owed(), self.parts.units
        batch = jnp.asarray(batch)
        plus_first, minus_first, x_plus, x_minus = self._enter(self.first, batch, now, owed)
        arriving = {0: self._send(0)}
        for index, unit in enumerate(cut.blocks):
            if self.overlap and index + 1 < len(cut.blocks):
                arriving[index + 1] = self._send(index + 1)
            flat = arriving.pop(index) if index in arriving else self._send(index)
            self._measure()
            flat, x_plus, x_minus = self._visit(flat, unit.parameters[0].index, x_plus, x_minus, now, owed)
            self._back(index, flat)
            del flat
        self.first, self.tail, plus, minus = self._leave(self.tail, plus_first, minus_first, x_plus, x_minus, batch, now, owed)
        self.pending = None
        self.pending = (self.rule.gradient(float(plus), float(minus)), now)
        return float(plus)

    def flush(self) -> None:
        """Apply the update that is pending."""
        if self.pending is None:
            return
        owed, cut = self._owed(), self.parts.units
        for index, unit in enumerate(cut.blocks):
            self._back(index, self._pay_block(self._send(index), unit.parameters[0].index, owed))
        self.first, self.tail = self._pay_ends(self.first, self.tail, owed)
        self.pending = None

    def evaluate(self, batch: Int[Any, "batch length"]) -> float:
        """The loss of the weights as they are after all steps: a pending update is flushed first."""
        self.flush()
        batch = jnp.asarray(batch)
        x = self.parts.first(self.first, batch[:, :-1])
        for index in range(len(self.blocks)):
            x = self._plain(self._send(index), x)
        return float(self._loss(self.tail, self.first, x, batch))

    def load(self, of: Callable[[Unit], Mapping[str, np.ndarray]]) -> None:
        """Set all weights; ``of(unit)`` gives those of one unit by their full names."""
        cut = self.parts.units
        self.first, self.tail = (jax.device_put(self.parts.flat(unit, of(unit)), self._device) for unit in (cut.first, cut.tail))
        self.blocks = [jax.device_put(self.parts.flat(unit, of(unit)).astype(self.wire), self._host) for unit in cut.blocks]

    def weights(self, flush: bool = True) -> dict[str, np.ndarray]:
        """Copies of all weights, by name; a pending update is flushed first, if it is not asked to stay."""
        if flush:
            self.flush()
        flats = zip(self.parts.units, (self.first, *self.blocks, self.tail), strict=True)
        return {each.name: np.asarray(view) for unit, flat in flats for each, view in unit.views(np.asarray(flat))}

    def _owed(self) -> tuple[Key, Any, Any]:
        """(key, scale, keep) of the pending update; scale 0 and keep 1 change nothing, so that one compilation serves."""
        if self.pending is None:
            return jnp.zeros(2, jnp.uint32), 0.0, 1.0
        gradient, key = self.pending
        return key, -self.rule.rate * gradient, 1.0 - self.rule.rate * self.rule.decay

    def _send(self, index: int) -> Array:
        start = self.trace.now()
        flat = jax.device_put(self.blocks[index], self._device)
        self.trace.add(self.parts.units.blocks[index].name, "upload", flat.nbytes, start)
        return flat

    def _back(self, index: int, flat: Array) -> None:
        start = self.trace.now()
        self.blocks[index] = jax.device_put(flat, self._host)
        if not self.overlap:
            self.blocks[index].block_until_ready()
        self.trace.add(self.parts.units.blocks[index].name, "offload", flat.nbytes, start)

    def _measure(self) -> None:
        live = sum(each.nbytes for each in jax.live_arrays() if each.sharding.memory_kind == "device")
        self.peak = max(self.peak, live)

    def _enter(self, first: Array, batch: Array, now: Key, owed: Any) -> tuple[Array, ...]:
        """The first unit both ways; it is restored in ``_leave``, as a tied head needs both."""
        _, plus, minus, _ = self._both(self.parts.units.first, first, 0, now, owed)
        return plus, minus, self.parts.first(plus, batch[:, :-1]), self.parts.first(minus, batch[:, :-1])

    def _visit(self, flat: Array, base: Any, x_plus: Array, x_minus: Array, now: Key, owed: Any) -> tuple[Array, Array, Array]:
        """Pending update, + forward, - forward, restore: one program for all blocks."""
        _, plus, minus, restored = self._both(self.parts.units.blocks[0], flat.astype(self.parts.dtype), base, now, owed)
        return restored.astype(flat.dtype), self.parts.block(plus, x_plus), self.parts.block(minus, x_minus)

    def _leave(
        self, tail: Array, plus_first: Array, minus_first: Array, x_plus: Array, x_minus: Array, batch: Array, now: Key, owed: Any
    ) -> tuple[Array, ...]:
        cut = self.parts.units
        _, plus, minus, restored = self._both(cut.tail, tail, cut.tail.parameters[0].index, now, owed)
        losses = [
            next_token_loss(self.parts.tail(theta, first, x), batch[:, 1:])
            for theta, first, x in ((plus, plus_first, x_plus), (minus, minus_first, x_minus))
        ]
        first = shift(minus_first, self.rule.epsilon, noise(cut.first, now, 0, self.parts.dtype))
        return first, restored, *losses

    def _pay_block(self, flat: Array, base: Any, owed: Any) -> Array:
        return self._paid(self.parts.units.blocks[0], flat.astype(self.parts.dtype), base, owed).astype(flat.dtype)

    def _pay_ends(self, first: Array, tail: Array, owed: Any) -> tuple[Array, Array]:
        cut = self.parts.units
        return self._paid(cut.first, first, 0, owed), self._paid(cut.tail, tail, cut.tail.parameters[0].index, owed)

    def _plain(self, flat: Array, x: Array) -> Array:
        return self.parts.block(flat.astype(self.parts.dtype), x)

    def _loss(self, tail: Array, first: Array, x: Array, batch: Array) -> Array:
        return next_token_loss(self.parts.tail(tail, first, x), batch[:, 1:])

    def _both(self, unit: Unit, flat: Array, base: Any, now: Key, owed: Any) -> tuple[Array, Array, Array, Array]:
        """The weights after the pending update, then + eps, - 2 eps, + eps."""
        theta, z, epsilon = self._paid(unit, flat, base, owed), noise(unit, now, base, self.parts.dtype), self.rule.epsilon
        plus = shift(theta, epsilon, z)
        minus = shift(plus, -2 * epsilon, z)
        return theta, plus, minus, shift(minus, epsilon, z)

    def _paid(self, unit: Unit, flat: Array, base: Any, owed: Any) -> Array:
        key, scale, keep = owed
        return update(unit, flat, scale, keep, noise(unit, key, base, self.parts.dtype))
