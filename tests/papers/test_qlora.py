"""What the generic tests do not say of QLoRA's layers: peers, both frameworks, adapters on disk, bad input."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from common.architecture import Transformer
from common.models import transformer_jax, transformer_torch
from common.models.weights import initial_weights, to_flax, to_torch
from kernels.block_quant import code_book, double_quantize
from papers.qlora import grids, layers_jax, layers_torch
from papers.qlora.kernel import dequantize_nf4, matmul_nf4
from papers.qlora.weights import ATTENTION, FourBit, matching

pytestmark = pytest.mark.xdist_group("qlora")

SHAPE = Transformer(width=48, depth=2, heads=2, kv_heads=1, head_dim=24, hidden=80, context=32, vocabulary=64)
ONE_BLOCK = replace(SHAPE, depth=1)


@pytest.fixture(scope="module")
def peer():
    return pytest.importorskip("bitsandbytes")


@pytest.fixture(scope="module")
def pair():
    """The same model in both frameworks, in 4 bits with adapters that do something."""
    weights = initial_weights(ONE_BLOCK, 1)
    by_torch, by_jax = transformer_torch.TransformerLM(ONE_BLOCK), transformer_jax.TransformerLM(ONE_BLOCK)
    to_torch(by_torch, weights)
    to_flax(by_jax, weights)
    for layers, model in ((layers_torch, by_torch), (layers_jax, by_jax)):
        layers.quantize(model)
        layers.add_adapters(model, 4)
    rng = np.random.default_rng(0)
    values = {name: rng.normal(0, 0.1, p.shape).astype(np.float32) for name, p in layers_torch.adapters(by_torch).items()}
    layers_torch.load_adapters(by_torch, values)
    layers_jax.load_adapters(by_jax, values)
    return by_torch, by_jax


def test_state_is_that_of_bitsandbytes_and_its_product_too(peer):
    w = torch.randn(96, 128, generator=torch.Generator().manual_seed(0))
    packed, state = peer.functional.quantize_4bit(w, quant_type="nf4", compress_statistics=True)
    made = FourBit.of(w)
    assert torch.equal(made.packed.flatten(), packed.flatten())
    assert torch.equal(made.scales, state.state2.absmax) and made.offset == state.offset
    # Its 8-bit codes are looked up on a grid of 65536 steps; with its codes, everything is the same to the bit.
    x = torch.randn(16, 128, generator=torch.Generator().manual_seed(1))
    outer = {"scales": state.state2.absmax, "offset": state.offset}
    dense = dequantize_nf4(made.packed, state.absmax, code_book("nf4"), **outer)
    assert torch.equal(dense, peer.functional.dequantize_4bit(packed, state))
    y = matmul_nf4(x, made.packed, state.absmax, code_book("nf4"), **outer)
    torch.testing.assert_close(y, peer.matmul_4bit(x, packed.t(), state), rtol=1e-5, atol=1e-5)


def test_bytes_of_bitsandbytes_fp4_with_its_own_order(peer):
    w = torch.randn(8, 64, generator=torch.Generator().manual_seed(2))
    packed, state = peer.functional.quantize_4bit(w, quant_type="fp4")
    code = peer.functional.get_4bit_type("fp4", device="cpu")
    assert torch.equal(dequantize_nf4(packed.reshape(8, 32), state.absmax, code), peer.functional.dequantize_4bit(packed, state))


@pytest.mark.parametrize("kind", grids.NAMES)
def test_gradient_is_that_of_the_dense_product(kind):
    made = FourBit.of(torch.randn(40, 86, generator=torch.Generator().manual_seed(0)), kind)
    outer = {"scales": made.scales, "offset": made.offset}
    dense = dequantize_nf4(made.packed, made.absmax, made.code, **outer).double()
    x = torch.randn(3, 5, 86, dtype=torch.float64, requires_grad=True)
    seed = torch.randn(3, 5, 40, dtype=torch.float64)
    want = x @ dense.T
    got = matmul_nf4(x, made.packed, made.absmax, made.code, **outer)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*(torch.autograd.grad(y, x, seed)[0] for y in (got, want)), rtol=1e-12, atol=1e-12)


def test_the_dequantised_matrix_is_not_kept():
    made = FourBit.of(torch.randn(256, 512))
    x = torch.randn(4, 512, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        matmul_nf4(x, made.packed, made.absmax, made.code, scales=made.scales, offset=made.offset)
    assert sum(t.numel() * t.element_size() for t in kept) < 256 * 512 * 4 / 4
    residual = jax.vjp(lambda x: matmul_nf4(x, *map(jnp.asarray, (made.packed, made.c1(), made.code))), jnp.ones((4, 512)))[1]
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(residual)) < 256 * 512 * 4 / 4


def test_both_frameworks_agree_in_values_and_gradients(pair):
    by_torch, by_jax = pair
    tokens = np.random.default_rng(0).integers(0, 64, (2, 17))
    assert list(layers_torch.adapters(by_torch)) == list(layers_jax.adapters(by_jax))

    graph, parameters, rest = nnx.split(by_jax, nnx.Param, ...)

    @jax.jit
    def loss(parameters):
        logits = nnx.merge(graph, parameters, rest)(jnp.asarray(tokens[:, :-1]))
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(tokens[:, 1:, None]), -1).mean()

    value, gradients = jax.value_and_grad(loss)(parameters)
    mine = torch.nn.functional.cross_entropy(
        by_torch(torch.from_numpy(tokens[:, :-1])).flatten(0, 1), torch.from_numpy(tokens[:, 1:]).flatten()
    )
    mine.backward()
    assert abs(float(value) - mine.item()) < 1e-5
    assert len(jax.tree.leaves(gradients)) == 2 * 7
    for name, p in layers_torch.adapters(by_torch).items():
        *path, last = name.split(".")
        theirs = gradients
        for part in (*path, last):
            theirs = theirs[int(part) if part.isdigit() else part]
        np.testing.assert_allclose(theirs[...], p.grad, rtol=2e-4, atol=1e-6, err_msg=name)


def test_trajectories_agree_in_float64():
    """Steps of Adam on L1 and L2 of one layer over the same bytes."""
    import optax

    made = FourBit.of(np.random.default_rng(0).standard_normal((24, 64)).astype(np.float32))
    rng = np.random.default_rng(1)
    x, target = rng.standard_normal((10, 64)), rng.standard_normal((10, 24))
    start = {"l1": rng.standard_normal((64, 3)) / 8, "l2": np.zeros((3, 24))}

    def layer(x, l1, l2, like):
        return matmul_nf4(x, like(made.packed), like(made.c1()), like(made.code)) + 2 * x @ l1 @ l2

    p = {name: torch.tensor(value, requires_grad=True) for name, value in start.items()}
    optimizer = torch.optim.AdamW(p.values(), lr=1e-2, weight_decay=0.0)
    for _ in range(10):
        optimizer.zero_grad()
        (layer(torch.tensor(x), **p, like=torch.tensor) - torch.tensor(target)).square().mean().backward()
        optimizer.step()
    with jax.enable_x64(True):
        q = {name: jnp.asarray(value) for name, value in start.items()}
        rule = optax.adamw(1e-2, weight_decay=0.0)
        state = rule.init(q)

        @jax.jit
        def step(q, state):
            grads = jax.grad(lambda q: jnp.square(layer(jnp.asarray(x), **q, like=jnp.asarray) - target).mean())(q)
            updates, state = rule.update(grads, state, q)
            return optax.apply_updates(q, updates), state

        for _ in range(10):
            q, state = step(q, state)
    for name in start:
        np.testing.assert_allclose(q[name], p[name].detach(), rtol=1e-9, atol=1e-9)


def test_adapter_is_that_of_peft():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = torch.nn.Linear(32, 24, bias=False)
    rng = np.random.default_rng(0)
    mine = layers_torch.LoRA(base, 4, 16.0, 0.0, rng.standard_normal((32, 4)), torch.float32)
    mine.l2.data.normal_()
    wrapped = peft.get_peft_model(
        torch.nn.Sequential(torch.nn.Linear(32, 24, bias=False)), peft.LoraConfig(r=4, lora_alpha=16, target_modules=["0"])
    )
    theirs = wrapped.base_model.model[0]
    with torch.no_grad():
        theirs.base_layer.weight.copy_(base.weight)
        theirs.lora_A["default"].weight.copy_(mine.l1.T)
        theirs.lora_B["default"].weight.copy_(mine.l2.T)
    x = torch.randn(5, 32)
    want = theirs(x)
    assert (mine(x) - want).abs().max() <= 1e-5 * want.abs().max()


def test_a_new_adapter_changes_nothing_and_only_adapters_are_trained():
    model = transformer_torch.TransformerLM(SHAPE)
    tokens = torch.arange(20).reshape(2, 10)
    layers_torch.quantize(model)
    before = model(tokens)
    layers_torch.add_adapters(model, 3, target=ATTENTION)
    assert torch.equal(model(tokens), before)
    assert {id(p) for p in layers_torch.trainable(model)} == {id(p) for p in layers_torch.adapters(model).values()}
    assert len(layers_torch.adapters(model)) == 2 * 4 * SHAPE.depth


def _logits(model, tokens):
    graph, state = nnx.split(model)
    return np.asarray(jax.jit(lambda state: nnx.merge(graph, state)(jnp.asarray(tokens)))(state))


def test_adapters_go_from_one_framework_to_the_other_and_merge(pair, tmp_path):
    by_torch, by_jax = pair
    tokens = np.random.default_rng(1).integers(0, 64, (1, 12))
    layers_jax.save_adapters(by_jax, tmp_path / "jax.safetensors")
    for p in layers_torch.adapters(by_torch).values():
        torch.nn.init.zeros_(p)
    layers_torch.load_adapters(by_torch, tmp_path / "jax.safetensors")
    layers_torch.save_adapters(by_torch, tmp_path / "torch.safetensors")
    layers_jax.load_adapters(by_jax, tmp_path / "torch.safetensors")
    before = by_torch(torch.from_numpy(tokens)).detach()
    others = _logits(by_jax, tokens)
    np.testing.assert_allclose(others, before, rtol=1e-4, atol=1e-4)
    layers_torch.merge(by_torch)
    layers_jax.merge(by_jax)
    torch.testing.assert_close(by_torch(torch.from_numpy(tokens)), before, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(_logits(by_jax, tokens), others, rtol=1e-4, atol=1e-4)
    layers_torch.unmerge(by_torch)
    layers_jax.unmerge(by_jax)
    assert torch.equal(by_torch(torch.from_numpy(tokens)), before)
    assert (_logits(by_jax, tokens) == others).all()


def test_dropout_is_before_the_adapter_and_off_in_evaluation():
    base = torch.nn.Linear(16, 8, bias=False)
    layer = layers_torch.LoRA(base, 2, 16.0, 0.5, np.ones((16, 2)), torch.float32)
    layer.l2.data.fill_(1.0)
    x = torch.ones(4, 16)
    layer.eval()
    assert torch.equal(layer(x), layer(x)) and not torch.equal(layer.train()(x), layer(x))
    jax_base = nnx.Linear(16, 8, use_bias=False, rngs=nnx.Rngs(0))
    theirs = layers_jax.LoRA(jax_base, 2, 16.0, 0.5, np.ones((16, 2)), jnp.float32, 0)
    theirs.l2[...] = jnp.ones((2, 8))
    theirs.eval()
    assert (theirs(jnp.ones((4, 16))) == theirs(jnp.ones((4, 16)))).all()
    theirs.train()
    assert not (theirs(jnp.ones((4, 16))) == theirs(jnp.ones((4, 16)))).all()


def test_code_book_of_the_paper():
    np.testing.assert_allclose(grids.normal_float(), code_book("nf4"), atol=1e-6)
    textbook = grids.textbook_quantiles()
    assert textbook.size == 15 and np.allclose(textbook, -textbook[::-1]) and abs(textbook[-2] - code_book("nf4")[-2]) > 0.04


def test_bad_input():
    model = transformer_torch.TransformerLM(SHAPE)
    with pytest.raises(ValueError, match=r"no linear layer matches 'q_proj'; there are blocks\.0\.attention\.query"):
        layers_torch.add_adapters(model, 4, target="q_proj")
    with pytest.raises(ValueError, match=r"no linear layer matches 'q_proj'; there are blocks\.0\.attention\.query"):
        layers_jax.add_adapters(transformer_jax.TransformerLM(SHAPE), 4, target="q_proj")
    with pytest.raises(ValueError, match="rank is 0"):
        layers_torch.add_adapters(model, 0)
    model.blocks[1].feed_forward.up.weight.data[3, 5] = torch.nan
    with pytest.raises(ValueError, match=r"blocks\.1\.feed_forward\.up\.weight: quantize_blockwise: x has nan at place 149"):
        layers_torch.quantize(model)
    for block in (16, 100, 8192):
        with pytest.raises(ValueError, match="wanted a power of two"):
            FourBit.of(torch.ones(4, 64), block=block)
    with pytest.raises(ValueError, match="k even"):
        FourBit.of(torch.ones(4, 7))
    with pytest.raises(ValueError, match="no 4-bit code 'nf3'"):
        FourBit.of(torch.ones(4, 8), "nf3")
    with pytest.raises(ValueError, match="there are none"):
        matching("x", [])
    made = FourBit.of(torch.ones(4, 64), double=False)
    with pytest.raises(ValueError, match=r"absmax has shape \(3,\); 256 weights in blocks of 64 want \(4,\)"):
        matmul_nf4(torch.ones(1, 64), made.packed, made.absmax[:3], made.code)
    with pytest.raises(ValueError, match="x has 32 features"):
        matmul_nf4(torch.ones(1, 32), made.packed, made.absmax, made.code)
    indices, scales, offset = double_quantize(made.absmax)
    with pytest.raises(ValueError, match="offset missing"):
        matmul_nf4(torch.ones(1, 64), made.packed, indices, made.code, scales=scales)
    with pytest.raises(ValueError, match="2 scales for 4 indices"):
        matmul_nf4(torch.ones(1, 64), made.packed, indices, made.code, scales=torch.ones(2), offset=offset)
    small, large = (layers_torch.add_adapters(transformer_torch.TransformerLM(SHAPE), r) for r in (2, 3))
    with pytest.raises(ValueError, match=r"adapter 'blocks.\d.\w+.\w+.l[12]': the model has"):
        layers_torch.load_adapters(small, {n: p.detach().numpy() for n, p in layers_torch.adapters(large).items()})
