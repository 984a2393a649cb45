"""DFloat11: codes and files are the authors', every bit comes back, and what is damaged is refused."""

import contextlib
import importlib.util
import io
import itertools
import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common import UserError, zoo
from common.architecture import Transformer
from common.models import transformer_jax, transformer_torch, weights
from papers.dfloat11 import memory, model_jax, model_torch, peers, published, store
from papers.dfloat11.codec import encode, fits, size_formula, split
from papers.dfloat11.config import Config
from papers.dfloat11.huffman import END, entropy, huffman, package_merge
from papers.dfloat11.kernel import decode

torch.set_num_threads(1)
pytestmark = pytest.mark.xdist_group("dfloat11")


def normal(count: int, seed: int = 0, scale: float = 0.02) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(count) * scale).astype(ml_dtypes.bfloat16).view(np.int16)


def histogram(pairs) -> np.ndarray:
    counts = np.zeros(256, np.int64)
    for symbol, count in pairs:
        counts[symbol] = count
    return counts


HISTOGRAMS = st.dictionaries(st.integers(0, 239), st.integers(1, 5000), min_size=1, max_size=60).map(
    lambda d: histogram(d.items())
)


@given(HISTOGRAMS)
def test_codes_are_prefix_free_whole_and_optimal(counts):
    code, best = huffman(counts), package_merge(counts)
    assert set(code.words) == set(np.flatnonzero(counts).tolist()) | {END}
    assert sum(2.0**-length for length, _ in code.words.values()) == 1  # no bits are wasted, none is used twice
    words = sorted(format(word, f"0{length}b") for length, word in code.words.values())
    assert not any(b.startswith(a) for a, b in itertools.pairwise(words))
    cost = {s: 1 if s == END else int(counts[s]) for s in code.words}
    mine, least = (
        sum(cost[s] * n for s, n in lengths) for lengths in ([(s, n) for s, (n, _) in code.words.items()], best.items())
    )
    assert mine == least
    whole = np.append(counts[counts > 0], 1)
    assert entropy(whole) <= mine / whole.sum() < entropy(whole) + 1


def test_words_are_at_most_32_bits():
    """Counts that grow like Fibonacci's give words one bit longer each."""
    fibonacci = [1, 1]
    while len(fibonacci) < 60:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    counts = histogram(enumerate(fibonacci))
    code, best = huffman(counts), package_merge(counts)
    assert code.shortened and max(n for n, _ in code.words.values()) <= 32 and max(best.values()) <= 32
    cost = [
        sum(int(counts[s]) * n for s, n in lengths if s != END)
        for lengths in ([(s, n) for s, (n, _) in code.words.items()], best.items())
    ]
    assert cost[1] <= cost[0] < 1.001 * cost[1]
    with pytest.raises(ValueError, match="have no prefix code of at most 3 bits"):
        package_merge(counts, longest=3)


@pytest.fixture(scope="module")
def theirs():
    """The module of the authors' package that needs no GPU, loaded alone."""
    pytest.importorskip("dahuffman")
    pytest.importorskip("tqdm")
    spec = importlib.util.find_spec("dfloat11")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package dfloat11 is not installed")
    path = spec.submodule_search_locations[0] + "/dfloat11_utils.py"
    found = importlib.util.spec_from_file_location("dfloat11_utils", path)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@contextlib.contextmanager
def silent():
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@pytest.mark.parametrize("kind", ["normal", "wide", "steep", "one", "few"])
def test_arrays_are_those_of_the_authors_package(theirs, kind):
    rng = np.random.default_rng(3)
    count, threads = {"normal": (20_000, 512), "wide": (3000, 16), "steep": (5000, 64), "one": (700, 16), "few": (40, 8)}[kind]
    x = rng.standard_normal(count) * 0.02
    if kind == "wide":
        x = np.exp2(rng.integers(-30, 30, count).astype(float)) * rng.choice([-1, 1], count)
    if kind == "steep":
        x = np.exp2(-rng.geometric(0.5, count).astype(float))
    if kind == "one":
        x = np.full(count, 1.5)
    bits = x.astype(ml_dtypes.bfloat16).view(np.int16)
    unit = encode(bits, threads=threads)
    with silent():
        _, counter = theirs.get_codec(torch.from_numpy(bits).view(torch.bfloat16))
        codec, _, table = theirs.get_32bit_codec(counter)
        stream, gaps, positions = theirs.encode(split(bits)[0].tolist(), codec, 8, threads)
    assert {s if isinstance(s, int) else END: word for s, word in table.items()} == unit.code.words
    assert np.array_equal(stream, unit.stream) and np.array_equal(gaps, unit.gaps) and np.array_equal(positions, unit.positions)
    if kind != "one":  # its end mark has the word 0, on which the package's own tables fail
        with silent():
            assert np.array_equal(theirs.get_luts(table).numpy(), unit.tables)
    stream, gaps, positions = peers.encode_by_symbol(split(bits)[0], unit)
    assert stream == unit.stream.tobytes() and np.array_equal(gaps, unit.gaps) and positions == unit.positions.tolist()


@given(hnp.arrays(np.uint16, st.integers(0, 300)), st.sampled_from([8, 16, 64]))
def test_any_bits_in_the_domain_come_back_and_others_are_refused(words, threads):
    """Subnormals, zeros of both signs and every mantissa; NaN, infinities and magnitudes from 2^113 on are outside."""
    bits = words.view(np.int16)
    if (split(bits)[0] >= 240).any():
        assert not fits(bits)
        with pytest.raises(UserError, match="exponent 240 or more"):
            encode(bits)
        bits = (words & 0x3FFF).view(np.int16)
    try:
        unit = encode(bits, threads=threads)
    except UserError as error:
        assert not fits(bits) and "tables, of which 16 can be named" in str(error)
        return
    assert np.array_equal(unit.decode(), bits) and np.array_equal(unit.decode(backend="reference"), bits)
    assert np.array_equal(unit.decode(variant="parallel"), bits)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2.0**113])
def test_what_tables_cannot_name_is_refused_by_name(value):
    bits = np.array([0.5, value, value, 1.0]).astype(ml_dtypes.bfloat16)
    with pytest.raises(UserError, match=r"blocks\.3 has 2 numbers with exponent 240 or more"):
        store.compress({"blocks.3.up.weight": bits.reshape(2, 2)})
    kept = store.compress({"blocks.3.up.weight": bits.reshape(2, 2)}, raw=True)
    assert not kept.units and np.array_equal(
        kept.decode()["blocks.3.up.weight"].view(np.int16), bits.reshape(2, 2).view(np.int16)
    )


def test_a_thread_can_begin_anywhere():
    """The last block alone holds only the end of the last code, and a piece may begin in the middle of one."""
    for seed in range(60):
        bits = normal(int(np.random.default_rng(seed).integers(1, 900)), seed)
        unit = encode(bits, threads=16)
        assert np.array_equal(unit.decode(), bits) and np.array_equal(unit.decode(variant="parallel"), bits), seed


def test_gaps_and_positions_matter():
    unit = encode(normal(3000), threads=16)
    arrays = {name: torch.from_numpy(array.copy()) for name, array in unit.arrays.items()}
    arrays["gaps"].zero_()
    for variant in ("serial", "parallel"):
        assert not np.array_equal(decode(**arrays, threads=16, variant=variant).numpy(), normal(3000)), variant


def test_size_is_the_formula():
    unit = encode(normal(200_000))
    assert unit.nbytes * 8 / 200_000 == pytest.approx(size_formula(unit), abs=0.01)
    assert 0.67 < unit.nbytes / 400_000 < 0.70


def bad(**changes):
    unit = encode(normal(500), threads=16)
    return {**{n: torch.from_numpy(a.copy()) for n, a in unit.arrays.items()}, "threads": 16, **changes}


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (lambda: bad(threads=12), ValueError, "wanted a multiple of 8"),
        (lambda: bad(threads=32), ValueError, "pass the threads that the stream was encoded for"),
        (lambda: bad(sign_mantissa=torch.zeros(499, dtype=torch.uint8)), ValueError, "must rise from 0 to the 499 bytes"),
        (lambda: bad(tables=torch.zeros(20, 256, dtype=torch.uint8)), ValueError, "wanted \\(2 to 17, 256\\)"),
        (lambda: bad(variant="fast"), ValueError, "there are 'parallel', and 'serial' on a CPU"),
        (lambda: bad(backend="triton", variant="serial"), ValueError, "has the variant 'parallel'"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(arguments, kind, message):
    with pytest.raises(kind, match=message):
        decode(**arguments())


def test_wrong_types_are_refused():
    import inspect

    arguments = bad()
    arguments["stream"] = arguments["stream"].int()
    with pytest.raises(TypeError, match=r"stream is torch\.int32; wanted an array of uint8"):
        inspect.unwrap(decode)(**arguments)


def test_wrong_bits_end_and_stay_inside():
    """Damage is the checksum's business, but no bits may hang a decoder or make it read outside."""
    rng = np.random.default_rng(0)
    unit = encode(normal(2000), threads=16)
    for _ in range(40):
        arrays = {name: array.copy() for name, array in unit.arrays.items()}
        for name in ("stream", "gaps", "tables"):
            arrays[name] = rng.integers(0, 256, arrays[name].shape, dtype=np.uint8)
        for variant in ("serial", "parallel"):
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
            assert decode(**tensors, threads=16, variant=variant).shape == (2000,)


SMALL = Transformer(width=16, depth=2, heads=2, kv_heads=1, head_dim=8, hidden=24, context=16, vocabulary=64)


@pytest.fixture
def file(tmp_path):
    found = store.compress(store.bfloat16(weights.initial_weights(SMALL, 0)), threads=16)
    found.save(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_a_file_is_the_checkpoint(file):
    want, got = store.bfloat16(weights.initial_weights(SMALL, 0)), store.load(file).decode()
    assert set(got) == set(want) and all(np.array_equal(got[n].view(np.int16), w.view(np.int16)) for n, w in want.items())
    loaded = store.load(file)
    assert set(loaded.units) == {"blocks.0", "blocks.1", "embedding"} and loaded.count == sum(
        w.size for w in want.values() if w.ndim == 2
    )
    assert loaded.units["blocks.1"].code is None is loaded.units["blocks.1"].counts
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as opened:
        names = {name.removeprefix("embedding.") for name in opened.keys() if name.startswith("embedding.")}  # noqa: SIM118
    assert names == {"luts", "encoded_exponent", "gaps", "output_positions", "sign_mantissa", "split_positions"}


@pytest.mark.parametrize("trials", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_corruptions_are_refused(file, tmp_path, trials):
    """Flipped bits, overwritten runs, cut ends; what changes nothing but the header's padding may pass."""
    whole, rng = file.read_bytes(), np.random.default_rng(1)
    want = {name: array.tobytes() for name, array in store.load(file).decode().items()}
    path, passed = tmp_path / "damaged.safetensors", 0
    for trial in range(trials):
        damaged = bytearray(whole)
        if trial % 3 == 0:
            damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        elif trial % 3 == 1:
            start = int(rng.integers(len(whole)))
            run = rng.integers(0, 256, int(rng.integers(1, 40)), dtype=np.uint8).tobytes()[: len(whole) - start]
            damaged[start : start + len(run)] = run
        else:
            damaged = damaged[: int(rng.integers(len(whole)))]
        if bytes(damaged) == whole:
            continue
        path.write_bytes(damaged)
        try:
            found = store.load(path)
        except UserError:
            continue
        passed += 1
        assert {name: array.tobytes() for name, array in found.decode().items()} == want, trial
    assert passed <= trials / 100


def test_other_versions_are_refused(file, monkeypatch):
    monkeypatch.setattr(store, "VERSION", 2)
    with pytest.raises(UserError, match="of version 1 with 8 bytes a thread, this reads version 2"):
        store.load(file)
    monkeypatch.setattr(store, "VERSION", 1)
    monkeypatch.setattr(store, "BYTES", 16)
    with pytest.raises(UserError, match="with 8 bytes a thread, this reads version 1 with 16"):
        store.load(file)
    with pytest.raises(UserError, match="is no whole DFloat11 file"):
        store.load(file.with_name("nothing"))


@pytest.mark.parametrize(
    ("given_weights", "patterns", "message"),
    [
        ({"blocks.0.a": np.zeros((2, 2), np.float32)}, store.PATTERNS, "'blocks.0.a' is float32; the format holds bfloat16"),
        ({"blocks.0.a": np.zeros((2, 2), np.float16)}, store.PATTERNS, "'blocks.0.a' is float16"),
        ({"a": np.zeros((2, 2), ml_dtypes.bfloat16)}, (r"layer\.\d+",), "no matrix has a name that begins with layer"),
    ],
)
def test_checkpoints_outside_the_format_are_refused(given_weights, patterns, message):
    with pytest.raises(UserError, match=message):
        store.compress(given_weights, patterns)


@pytest.mark.parametrize("tied", [True, False])
def test_a_compressed_model_is_the_model(tmp_path, tied):
    """Logits are those of bfloat16 bit for bit, one buffer holds every unit in turn, and both frameworks read one file."""
    import dataclasses

    architecture = dataclasses.replace(SMALL, tied=tied)
    tokens = np.random.default_rng(0).integers(0, 64, (2, 12))
    plain = transformer_torch.TransformerLM(architecture, seed=3, dtype=torch.bfloat16)
    packed = transformer_torch.TransformerLM(architecture, seed=3, dtype=torch.bfloat16)
    compressed, decoder = model_torch.compressed_lm(packed, threads=16)
    with torch.no_grad():
        want = plain(torch.from_numpy(tokens))
        for _ in range(2):
            assert torch.equal(packed(torch.from_numpy(tokens)), want)
    assert decoder.decoded == {name: 2 * (1 + (tied and name == "embedding")) for name in compressed.units}
    assert decoder.buffer.numel() == max(unit.sign_mantissa.size for unit in compressed.units.values())
    assert not any(p.ndim > 1 for p in packed.parameters()), "no matrix is kept beside its compressed form"

    compressed.save(tmp_path / "model.safetensors")
    theirs = transformer_jax.TransformerLM(architecture, seed=3, param_dtype=jnp.bfloat16)
    want = np.asarray(theirs(jnp.asarray(tokens)).view(jnp.int16))
    empty = transformer_jax.TransformerLM(architecture, seed=4, param_dtype=jnp.bfloat16)
    got = model_jax.from_file(empty, tmp_path / "model.safetensors")(jnp.asarray(tokens))
    assert np.array_equal(np.asarray(got.view(jnp.int16)), want)
    again = transformer_torch.TransformerLM(architecture, seed=4, dtype=torch.bfloat16)
    model_torch.from_file(again, tmp_path / "model.safetensors")
    with torch.no_grad():
        assert torch.equal(again(torch.from_numpy(tokens)), plain(torch.from_numpy(tokens)))


def test_models_that_do_not_fit_are_refused(file):
    import dataclasses

    other = transformer_torch.TransformerLM(dataclasses.replace(SMALL, depth=1), dtype=torch.bfloat16)
    with pytest.raises((ValueError, AttributeError), match="blocks"):
        model_torch.from_file(other, file)
    with pytest.raises(ValueError, match=r"is torch\.float32; build the model with dtype=torch\.bfloat16"):
        model_torch.compressed_lm(transformer_torch.TransformerLM(SMALL))


def test_peers_read_the_same_bytes():
    bits = normal(30_000)
    rows = {row["what"]: row for row in peers.table(bits, encode(bits), 512, 1)}
    assert 0.66 < rows["dfloat11, 1 thread"]["ratio"] < 0.72
    if zstd := rows.get("zstandard"):
        assert rows["dfloat11, 1 thread"]["ratio"] < zstd["ratio"]
    fixed = peers.fixed(bits, 16)
    assert np.array_equal(fixed.decode(), bits) and fixed.nbytes >= bits.nbytes


def test_published_sizes():
    assert published.LLAMA_31["8B"].parameters() == 8_030_261_248
    assert published.LLAMA_31["405B"].parameters() == 405_853_388_800
    assert memory.sizes(published.LLAMA_31["8B"], 16)["dfloat11"] == memory.sizes(published.LLAMA_31["8B"], 16)["bfloat16"]
    assert memory.offload_sweep(16.0) == []
    gains = memory.context_gain(published.LLAMA_31["8B"], 10.9, 24e9, np.array([0.0, 3e9, 6e9]))
    assert (np.diff(gains) > 0).all()


def test_the_zoo_is_compressible():
    found = store.compress(store.bfloat16(zoo.load("byte_lm_draft.v1").weights))
    assert found.nbytes < 0.7 * 2 * sum(w.size for w in zoo.load("byte_lm_draft.v1").weights.values())


@pytest.mark.parametrize(
    ("change", "message"), [({"threads": 48}, "wanted a power of two"), ({"batches": [1]}, "wanted two or more sizes")]
)
def test_bad_options_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Config(**change)


def test_notes_are_json(file):
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as opened:
        notes = json.loads(json.loads(opened.metadata()["dfloat11"])["note"])
    assert notes["bytes_per_thread"] == 8 and notes["units"]["embedding"]["threads_per_block"] == 16
