"""JAX on meshes of CPU devices: the ring against the whole attention, the encoder and the decoder against PyTorch in one process.

All of it happens in one process of its own, which sees eight devices; what it returns are plain numbers.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from common.agreement import relative_error
from common.distributed import on_devices
from papers.sequence_parallelism.config import Config, Fault
from papers.sequence_parallelism.encoder import Shape
from papers.sequence_parallelism.exact import DECODER, _batches
from papers.sequence_parallelism.parallel import Job, Trained, serial

if TYPE_CHECKING:
    from common.ledger import Value

DEVICES = 8
EVERYTHING = "data x tensor x sequence"
MESHES = {
    EVERYTHING: {"data": 2, "tensor": 2, "sequence": 2},
    "sequence": {"sequence": 4},
    "sequence x data": {"sequence": 2, "data": 2},
    "sequence x tensor": {"sequence": 2, "tensor": 2},
}


def measured(config: Config, wants: dict[str, bool]) -> dict[str, Any]:
    """Values of JAX for the claims exact, comm and twin, as far as they are wanted."""
    jobs: dict[str, tuple[Job, Trained]] = {}
    if wants["twin"]:
        batches = _batches(config, 2, 16, config.twin_steps)
        for name, shape in (("dense", Shape(16, 1, 2, 16)), ("Linformer", Shape(16, 1, 2, 16, rows=3))):
            job = Job(shape, batches, seed=config.seed)
            jobs[name] = job, serial(job)
    return on_devices(_all, DEVICES, config, wants, jobs, _decoder_wanted(config) if wants["twin"] else None, timeout=600)


def _all(config: Config, wants: dict[str, bool], jobs: Any, decoder: Any) -> dict[str, Any]:
    import jax

    late = int(config.fault is Fault.late)
    with jax.enable_x64(True):
        found: dict[str, Any] = {}
        if wants["exact"]:
            found["exact"] = _attentions(config.seed, late, (1, 2, 4, 8) if config.twin_meshes else (1, 2, 8))
        if wants["comm"]:
            found["comm"] = _sent()
        if wants["twin"]:
            found["twin"] = _encoders(config, jobs, late)
            if config.twin_meshes:
                found["twin"]["causal decoder"] = _decoder(decoder, late)
        return found


def _ring(function: Any, devices: int) -> Any:
    """A function of whole arrays that runs on chunks."""
    import jax
    from jax.sharding import AxisType, PartitionSpec

    grid = jax.make_mesh((devices,), ("sequence",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    chunks = PartitionSpec(None, None, "sequence")
    return jax.shard_map(function, mesh=grid, in_specs=(chunks,) * 3, out_specs=chunks)


def _attentions(seed: int, late: int, sizes: tuple[int, ...]) -> dict[str, float]:
    """Errors of output and gradients of the ring on meshes, against all of the attention on one device."""
    import jax
    import jax.numpy as jnp

    from papers.sequence_parallelism.ring_jax import ring_attention, ring_attention_own

    rng = np.random.default_rng(seed)
    q, k, v, cotangent = (rng.standard_normal((2, 3, 16, 8)) for _ in range(4))
    seen = np.ones((2, 16), bool)
    seen[0, 13:] = False

    def whole(masked: bool, *arrays: Any) -> Any:
        q, k, v = arrays
        scores = q @ jnp.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1])
        scores = jnp.where(jnp.asarray(seen)[:, None, None], scores, -jnp.inf) if masked else scores
        return jax.nn.softmax(scores, axis=-1) @ v

    def both(function: Any) -> list[Any]:
        def compute(q: Any, k: Any, v: Any, cotangent: Any) -> list[Any]:
            out, pull = jax.vjp(function, q, k, v)
            return [out, *pull(cotangent)]

        return jax.jit(compute)(q, k, v, cotangent)

    def worst(got: list[Any], want: list[Any]) -> float:
        return max(relative_error(one, other) for one, other in zip(got, want, strict=True))

    masked, plain = both(partial(whole, True)), both(partial(whole, False))
    found = {
        f"JAX, {size}": worst(
            both(_ring(partial(ring_attention, axis="sequence", mask=jnp.asarray(seen), late=late), size)), masked
        )
        for size in sizes
    }
    found["JAX, 4, own backward"] = worst(both(_ring(lambda *qkv: ring_attention_own(*qkv, "sequence"), 4)), plain)
    return found


def _sent(devices: int = 4) -> dict[str, float]:
    """Numbers that a device sends over (N - 1) B Z C A, by the permutations and scattered sums of the traced program."""
    import jax
    import jax.numpy as jnp

    from papers.sequence_parallelism.ring_jax import ring_attention, ring_attention_own

    x = jnp.zeros((2, 3, 4 * devices, 8))
    unit = (devices - 1) * x.size / devices

    def numbers(function: Any) -> float:
        return sum(_numbers(eqn, devices) for eqn in _equations(jax.make_jaxpr(function)(x, x, x).jaxpr)) / unit

    def gradient(function: Any) -> Any:
        return jax.grad(lambda *qkv: function(*qkv).sum(), (0, 1, 2))

    plain = _ring(partial(ring_attention, axis="sequence"), devices)
    own = _ring(lambda *qkv: ring_attention_own(*qkv, "sequence"), devices)
    return {
        "JAX, forward": numbers(plain),
        "JAX, both, differentiated": numbers(gradient(plain)),
        "JAX, both, own backward": numbers(gradient(own)),
    }


def _equations(jaxpr: Any) -> Any:
    for eqn in jaxpr.eqns:
        yield eqn
        for each in eqn.params.values():
            inner = getattr(each, "jaxpr", each)
            if hasattr(inner, "eqns"):
                yield from _equations(inner)


def _numbers(eqn: Any, devices: int) -> float:
    if eqn.primitive.name == "ppermute":
        return sum(each.aval.size for each in eqn.invars)
    if eqn.primitive.name == "reduce_scatter":
        return sum(each.aval.size for each in eqn.invars) * (devices - 1) / devices
    return 0.0


def _encoders(config: Config, jobs: dict[str, tuple[Job, Trained]], late: int) -> dict[str, float]:
    """Errors of loss, gradients and trajectory by mesh."""
    from papers.sequence_parallelism.model_jax import Trainer, mesh
    from papers.sequence_parallelism.ring_jax import ring_attention

    found = {}
    runs = [("dense", name) for name in MESHES] if config.twin_meshes else [("dense", EVERYTHING)]
    for kind, name in [*runs, *([("Linformer", EVERYTHING)] if config.twin_meshes else [])]:
        job, want = jobs[kind]
        attend = partial(ring_attention, axis="sequence", late=late)
        trainer = Trainer(job.shape, mesh(**MESHES[name]), attend, job.rate, job.seed)
        steps = [trainer.step(batch) for batch in job.batches]
        gradients, weights = steps[-1][1], trainer.weights()
        worst = relative_error([losses for losses, _ in steps], want.losses)
        worst = max(worst, *(relative_error(gradients[key], array) for key, array in want.gradients.items()))
        found[name if kind == "dense" else kind] = max(
            worst, *(relative_error(weights[key], array) for key, array in want.weights.items())
        )
    return found


def _decoder_wanted(config: Config) -> tuple[np.ndarray, float, dict[str, np.ndarray]]:
    """Tokens, and loss and gradients of the repository's decoder in PyTorch."""
    import torch
    import torch.nn.functional as F

    from common.models.transformer_torch import TransformerLM

    tokens = _batches(config, 2, DECODER.context, 1)[0].tokens
    model = TransformerLM(DECODER, dtype=torch.float64)
    loss = F.cross_entropy(model(torch.from_numpy(tokens)).flatten(0, 1), torch.from_numpy(np.roll(tokens, -1, 1)).flatten())
    loss.backward()
    return tokens, loss.item(), {name: np.array(p.grad) for name, p in model.named_parameters()}


def _decoder(wanted: tuple[np.ndarray, float, dict[str, np.ndarray]], late: int, devices: int = 4) -> float:
    """Error of loss and gradients of the repository's decoder in JAX, with the ring as its attention."""
    import dataclasses

    import jax
    import jax.numpy as jnp
    from flax import nnx
    from jax.sharding import AxisType, PartitionSpec

    from common.models import rotary_table
    from common.models.transformer_jax import TransformerLM
    from common.models.weights import from_flax
    from papers.sequence_parallelism.ring_jax import ring_attention

    tokens, want_loss, want_gradients = wanted

    def attention(q: Any, k: Any, v: Any, layer: int) -> Any:
        """Turns queries and keys by their positions in the whole sequence: the model is told to use none."""
        chunk, dim = q.shape[-2:]
        table = jnp.asarray(rotary_table(devices * chunk, dim))
        cos, sin = jax.lax.dynamic_slice_in_dim(table, jax.lax.axis_index("sequence") * chunk, chunk, axis=1)

        def turn(x: Any) -> Any:
            first, second = jnp.split(x, 2, axis=-1)
            return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

        return ring_attention(turn(q), turn(k), v, "sequence", causal=True, late=late)

    model = TransformerLM(dataclasses.replace(DECODER, positions="none"), attention, param_dtype=jnp.float64)
    graph, state = nnx.split(model)
    grid = jax.make_mesh((devices,), ("sequence",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    chunks = PartitionSpec(None, "sequence")

    @partial(jax.shard_map, mesh=grid, in_specs=(PartitionSpec(), chunks, chunks), out_specs=PartitionSpec())
    def loss(state: Any, inputs: Any, targets: Any) -> Any:
        said = jax.nn.log_softmax(nnx.merge(graph, state)(inputs))
        picked = jnp.take_along_axis(said, targets[..., None], axis=-1)
        return -jax.lax.psum(picked.sum(), "sequence") / tokens.size

    value, gradients = jax.jit(jax.value_and_grad(loss))(state, jnp.asarray(tokens), jnp.asarray(np.roll(tokens, -1, 1)))
    got = from_flax(nnx.merge(graph, gradients))
    return max(relative_error(value, want_loss), *(relative_error(got[name], each) for name, each in want_gradients.items()))


def values(config: Config, wants: dict[str, bool]) -> dict[str, dict[str, Value]]:
    """The parts of the claims exact, comm and twin that JAX gives; nothing is started if none is wanted."""
    return measured(config, wants) if any(wants.values()) else {}
