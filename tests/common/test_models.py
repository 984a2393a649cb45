"""Architectures are counted right; the PyTorch and the flax.nnx model are the same function of the same weights."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from common.agreement import assert_trees_agree, relative_error
from common.architecture import Transformer
from common.models import rotary_table, transformer_jax, transformer_torch, weights

torch.set_num_threads(1)

LLAMA = Transformer(width=24, depth=2, heads=4, kv_heads=2, head_dim=6, hidden=40, context=16, vocabulary=31)
GPT = dataclasses.replace(LLAMA, kv_heads=4, feed_forward="gelu", norm="layer", positions="learned", tied=False)
LINEAR = dataclasses.replace(LLAMA, depth=1, kv_heads=1, head_dim=8, positions="none", output_norm=True)
MIXTURE = dataclasses.replace(LLAMA, depth=1, hidden=16, experts=4, active=2)
ALL = pytest.mark.parametrize("architecture", [LLAMA, GPT, LINEAR, MIXTURE], ids=["llama", "gpt", "linear", "mixture"])
TOLERANCE = {"float64": 1e-9, "float32": 1e-5}


def tokens(rows: int = 2, length: int = 12) -> np.ndarray:
    return np.random.default_rng(3).integers(0, LLAMA.vocabulary, (rows, length))


def error(got, want) -> float:
    return relative_error(np.asarray(got), np.asarray(want))


def drawn(architecture: Transformer) -> weights.Weights:
    """Weights far from the initial ones, scales and shifts included."""
    rng = np.random.default_rng(5)
    return {name: w + 0.2 * rng.standard_normal(w.shape) for name, w in weights.initial_weights(architecture, 1).items()}


def torch_model(architecture: Transformer, dtype: str = "float64", **options) -> transformer_torch.TransformerLM:
    model = transformer_torch.TransformerLM(architecture, dtype=getattr(torch, dtype), **options)
    weights.to_torch(model, drawn(architecture))
    return model


def jax_model(architecture: Transformer, dtype: str = "float64", **options) -> transformer_jax.TransformerLM:
    model = transformer_jax.TransformerLM(architecture, param_dtype=jnp.dtype(dtype), **options)
    weights.to_flax(model, drawn(architecture))
    return model


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@ALL
def test_logits_and_gradients_agree(architecture, dtype):
    some = tokens()
    cotangent = np.random.default_rng(7).standard_normal((*some.shape, architecture.vocabulary))
    ours = torch_model(architecture, dtype)
    logits = ours(torch.from_numpy(some))
    (logits * torch.from_numpy(cotangent).to(logits.dtype)).sum().backward()
    gradients = {name: p.grad.numpy() for name, p in ours.named_parameters()}

    with jax.enable_x64(dtype == "float64"):
        theirs = jax_model(architecture, dtype)
        graph, state = nnx.split(theirs)

        @jax.jit
        def both(state, tokens, cotangent):
            def product(state):
                logits = nnx.merge(graph, state)(tokens)
                return (logits * cotangent).sum(), logits

            return jax.grad(product, has_aux=True)(state)

        gradient, jax_logits = both(state, some, cotangent.astype(dtype))
        nnx.update(theirs, gradient)
        jax_gradients = weights.from_flax(theirs)
    assert logits.detach().numpy().dtype == np.asarray(jax_logits).dtype == dtype
    assert {g.dtype for g in jax_gradients.values()} == {g.dtype for g in gradients.values()} == {np.dtype(dtype)}
    assert error(jax_logits, logits.detach().numpy()) < TOLERANCE[dtype]
    assert_trees_agree(jax_gradients, gradients, TOLERANCE[dtype], "gradient")


@ALL
def test_a_seed_gives_the_same_weights_in_both(architecture):
    ours = weights.from_torch(transformer_torch.TransformerLM(architecture, seed=4))
    theirs = weights.from_flax(transformer_jax.TransformerLM(architecture, seed=4))
    wanted = weights.initial_weights(architecture, 4)
    assert list(ours) == list(wanted) and set(theirs) == set(wanted)
    for name, array in wanted.items():
        assert np.array_equal(ours[name], array.astype(np.float32)) and np.array_equal(theirs[name], ours[name]), name
    assert not np.array_equal(wanted["embedding.weight"], weights.initial_weights(architecture, 5)["embedding.weight"])


def test_softmax_attention_is_its_definition():
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((2, 6, 4, 5)), rng.standard_normal((2, 3, 9, 5)), rng.standard_normal((2, 3, 9, 5))
    wanted = np.empty_like(q)
    for head in range(6):
        for i in range(4):
            seen = slice(0, 3 + i + 1)
            scores = np.einsum("bd,bjd->bj", q[:, head, i], k[:, head // 2, seen]) / np.sqrt(5)
            p = np.exp(scores)
            wanted[:, head, i] = np.einsum("bj,bjd->bd", p / p.sum(1, keepdims=True), v[:, head // 2, seen])
    assert error(transformer_torch.softmax_attention(*map(torch.from_numpy, (q, k, v)), 0, start=3), wanted) < 1e-12
    with jax.enable_x64(True):
        assert error(transformer_jax.softmax_attention(*map(jnp.asarray, (q, k, v)), 0, start=3), wanted) < 1e-12


def test_rotation_depends_on_the_distance_alone():
    table = torch.from_numpy(rotary_table(30, 8))
    assert error(table[0, 7, 2], np.cos(7 * 10000 ** (-4 / 8))) < 1e-15
    q, k = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 1, 1, 1, 8)))

    def score(i, j):
        return (transformer_torch._rotate(q, table[:, i : i + 1]) * transformer_torch._rotate(k, table[:, j : j + 1])).sum()

    assert error(score(29, 21), score(12, 4)) < 1e-12 and error(score(29, 21), score(12, 5)) > 0.01


@ALL
def test_decoding_with_a_cache_is_the_full_pass(architecture):
    some = tokens()
    pieces = [some[:, :5], some[:, 5:6], some[:, 6:7], some[:, 7:]]
    model = torch_model(architecture)
    with torch.no_grad():
        full, cache, logits = model(torch.from_numpy(some)), model.empty_cache(2), []
        for piece in pieces:
            out, cache = model.step(torch.from_numpy(piece), cache)
            logits.append(out)
        again, _ = model.step(torch.from_numpy(some[:, 6:]), cache._replace(length=6))
    assert error(torch.cat(logits, 1), full) < 1e-12
    assert error(again, full[:, 6:]) < 1e-12, "tokens that were taken back leave a trace"

    with jax.enable_x64(True):
        twin = jax_model(architecture)
        step = nnx.jit(lambda model, tokens, cache: model.step(tokens, cache))
        cache, logits = twin.empty_cache(2), []
        for piece in pieces:
            out, cache = step(twin, piece, cache)
            logits.append(out)
        assert error(jnp.concatenate(logits, 1), full) < 1e-12


def test_generate_takes_the_likeliest():
    model, prompt = torch_model(LLAMA), torch.from_numpy(tokens()[:, :4])
    whole = prompt
    with torch.no_grad():
        for _ in range(6):
            whole = torch.cat([whole, model(whole)[:, -1:].argmax(-1)], 1)
    assert torch.equal(transformer_torch.generate(model, prompt, 6), whole[:, 4:])
    with jax.enable_x64(True):
        found = transformer_jax.generate(jax_model(LLAMA), jnp.asarray(prompt.numpy()), 6)
    assert np.array_equal(found, whole[:, 4:])


def test_too_long_a_sequence_is_refused():
    long = np.zeros((1, 17), int)
    with pytest.raises(ValueError, match="17 positions are more than the architecture's context of 16"):
        torch_model(LLAMA)(torch.from_numpy(long))
    model = jax_model(LLAMA, "float32")
    with pytest.raises(ValueError, match="17 positions"):
        model(jnp.asarray(long))
    with pytest.raises(ValueError, match="20 positions"):
        transformer_jax.generate(model, jnp.asarray(long[:, :11]), 10)


def test_mechanisms_are_arguments():
    """The attention sees un-repeated heads and its layer; every projection is made by ``linear``."""
    seen = []

    def attention(q, k, v, layer):
        seen.append((layer, tuple(q.shape), tuple(k.shape), tuple(v.shape)))
        return q

    class TorchDoubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    class JaxDoubled(nnx.Linear):
        def __call__(self, x):
            return 2 * super().__call__(x)

    logits = torch_model(LLAMA, attention=attention, linear=TorchDoubled)(torch.from_numpy(tokens())).detach()
    with jax.enable_x64(True):
        twin = jax_model(LLAMA, attention=attention, linear=JaxDoubled)(jnp.asarray(tokens()))
    assert seen == 2 * [(layer, (2, 4, 12, 6), (2, 2, 12, 6), (2, 2, 12, 6)) for layer in range(2)]
    assert error(twin, logits) < 1e-12
    assert error(torch_model(LLAMA, attention=attention)(torch.from_numpy(tokens())).detach(), logits) > 0.01


def test_float64_needs_x64():
    with pytest.raises(ValueError, match="no float64 here"):
        transformer_jax.TransformerLM(LLAMA, param_dtype=jnp.float64)


@given(st.data())
def test_closed_form_count_is_the_sum_of_all_shapes(data):
    kv_heads = data.draw(st.integers(1, 4))
    sizes = {n: data.draw(st.integers(1, 9), n) for n in ("width", "depth", "hidden", "context", "vocabulary")}
    architecture = Transformer(
        **sizes,
        heads=kv_heads * data.draw(st.integers(1, 3)),
        kv_heads=kv_heads,
        head_dim=2 * data.draw(st.integers(1, 4)),
        feed_forward=data.draw(st.sampled_from(["swiglu", "gelu"])),
        norm=data.draw(st.sampled_from(["rms", "layer"])),
        positions=data.draw(st.sampled_from(["rope", "learned", "none"])),
        tied=data.draw(st.booleans()),
        output_norm=data.draw(st.booleans()),
    )
    assert architecture.parameters() == sum(int(np.prod(shape)) for shape in weights.shapes(architecture).values())


@ALL
def test_models_have_as_many_parameters_as_counted(architecture):
    assert sum(p.numel() for p in torch_model(architecture).parameters()) == architecture.parameters()
    params = nnx.state(jax_model(architecture, "float32"), nnx.Param)
    assert sum(p.size for p in jax.tree.leaves(params)) == architecture.parameters()


def test_known_models_have_their_published_counts():
    llama = Transformer(
        width=4096, depth=32, heads=32, kv_heads=32, head_dim=128, hidden=11008, context=2048, vocabulary=32000, tied=False
    )
    assert llama.parameters() == 6_738_415_616  # LLaMA 7B
    big = dataclasses.replace(llama, width=8192, depth=80, heads=64, kv_heads=8, hidden=28672)
    assert big.parameters() == 68_976_648_192  # Llama 2 70B


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "depth must be a positive whole number, not 0"),
        ({"width": True}, "width must be a positive whole number"),
        ({"kv_heads": 3}, "3 does not divide 4"),
        ({"head_dim": 7}, "head_dim must be even, not 7"),
        ({"norm": "batch"}, "norm must be one of rms, layer, not 'batch'"),
    ],
)
def test_impossible_architectures_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(LLAMA, **change)


class TorchParts(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, (2, 3))
        self.norm = torch.nn.LayerNorm(4)
        self.rows = torch.nn.ModuleList([torch.nn.Linear(4, 5)])
        self.gain = torch.nn.Parameter(torch.randn(2, 5))

    def forward(self, image):
        x = self.norm(self.conv(image).permute(0, 2, 3, 1))
        return self.rows[0](x) * self.gain[1]


class JaxParts(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(3, 4, (2, 3), padding="VALID", rngs=rngs)
        self.norm = nnx.LayerNorm(4, epsilon=1e-5, rngs=rngs)
        self.rows = nnx.List([nnx.Linear(4, 5, rngs=rngs)])
        self.gain = nnx.Param(jnp.zeros((2, 5)))

    def __call__(self, image):
        return self.rows[0](self.norm(self.conv(image))) * self.gain[1]


def test_weights_of_any_pair_travel_both_ways():
    torch.manual_seed(0)
    ours, theirs = TorchParts(), JaxParts()
    weights.to_flax(theirs, weights.from_torch(ours))
    image = torch.randn(2, 3, 6, 7)
    assert error(theirs(jnp.asarray(image.permute(0, 2, 3, 1).numpy())), ours(image).detach()) < 1e-5
    back = weights.from_flax(theirs)
    assert_trees_agree(back, weights.from_torch(ours), 0.0)
    weights.to_torch(half := TorchParts().bfloat16(), back)
    weights.to_flax(theirs, weights.from_torch(half))
    assert_trees_agree(weights.from_flax(theirs), back, 2**-8)


@pytest.mark.parametrize(
    "load", [lambda w: weights.to_torch(TorchParts(), w), lambda w: weights.to_flax(JaxParts(), w)], ids=["torch", "flax"]
)
def test_errors_name_the_parameter(load):
    whole = weights.from_torch(TorchParts())
    with pytest.raises(ValueError, match=r"lack 'rows\.0\.bias'"):
        load({name: w for name, w in whole.items() if name != "rows.0.bias"})
    with pytest.raises(ValueError, match=r"'extra\.weight' is left over"):
        load(whole | {"extra.weight": np.zeros(3)})
    with pytest.raises(ValueError, match=r"'conv\.weight' has shape \(4, 3, 3, 2\), but the model wants \(4, 3, 2, 3\)"):
        load(whole | {"conv.weight": np.zeros((4, 3, 3, 2))})


def test_descriptions_load_no_framework():
    code = "import sys, common.architecture, common.models.weights, common.training, common.data.text; "
    code += "print([name for name in ('torch', 'jax', 'flax') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
