"""The file tier: whole or not at all, with and without O_DIRECT, at any size, under kill -9 and on a full disk."""

import errno
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import ROOT, UserError
from common.offload import Arena, DamagedFile, FileTier, OutOfSpace, Trace


@pytest.fixture(params=[None, False], ids=["direct if possible", "through the page cache"])
def tier(request, tmp_path):
    with FileTier(tmp_path / "tier", chunk=8192, direct=request.param, trace=Trace()) as tier:
        yield tier


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 8192, 8193, 100_003])
def test_round_trip(tier, size):
    rng = np.random.default_rng(size)
    content = rng.integers(0, 255, size, dtype=np.uint8)
    tier.write("layers.0/weight", content).wait()
    out = np.zeros_like(content)
    tier.read("layers.0/weight", out).wait()
    assert np.array_equal(out, content)
    assert tier.names() == ["layers.0/weight"] and tier.size("layers.0/weight") == size
    assert tier.trace.bytes() == {"write": size, "read": size}


@settings(max_examples=15)
@given(st.integers(0, 5), st.integers(1, 30_000), st.booleans())
def test_any_alignment(tmp_path_factory, shift, size, direct):
    memory = Arena(65536).allocate(40_000).numpy()
    with FileTier(tmp_path_factory.mktemp("tier"), chunk=4096, direct=None if direct else False) as tier:
        memory[:] = np.random.default_rng(size).integers(0, 255, memory.size)
        tier.write("x", memory[shift : shift + size])
        out = np.empty(40_000, np.uint8)[shift : shift + size]
        tier.read("x", out).wait()  # waits for the write
        assert np.array_equal(out, memory[shift : shift + size])


def test_many_at_once(tier):
    arrays = {f"{i}": np.full((100, 7), i, np.float32) for i in range(20)}
    for handle in [tier.write(name, array) for name, array in arrays.items()]:
        handle.wait()
    outs = {name: np.empty_like(array) for name, array in arrays.items()}
    for handle in [tier.read(name, out) for name, out in outs.items()]:
        handle.wait()
    assert all((outs[name] == array).all() for name, array in arrays.items())
    tier.remove("3")
    with pytest.raises(KeyError, match="nothing named '3'"):
        tier.size("3")


def test_fallback_is_said(tier):
    assert bool(tier.why_not) != tier.direct


def test_durable(tmp_path):
    with FileTier(tmp_path, durable=True) as tier:
        tier.write("x", np.ones(3)).wait()
        assert tier.size("x") == 24


def test_a_full_disk_changes_nothing(tier, monkeypatch):
    old = np.ones(5000)
    tier.write("x", old).wait()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for function in ("posix_fallocate", "pwritev"):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, full)
            with pytest.raises(
                OutOfSpace, match=r"no room for 'x'; 84,096 bytes are needed, [\d,]+ are free. Nothing was changed"
            ):
                tier.write("x", np.zeros(10_000)).wait()
    out = np.zeros_like(old)
    tier.read("x", out).wait()
    assert (out == 1).all() and [path.suffix for path in tier.folder.iterdir()] == [".tier"]
    with pytest.raises(OutOfSpace, match="bytes are needed"):
        tier.require(2**62)
    tier.require(1)


def test_a_file_larger_than_the_limit_is_an_error_of_the_same_kind(tmp_path):
    """A real refusal by the kernel, not a patched one: the limit on the size of files."""
    code = f"""
import resource, signal, numpy as np
from common.offload import FileTier, OutOfSpace
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
with FileTier({str(tmp_path)!r}) as tier:
    try:
        tier.write("x", np.zeros(100_000)).wait()
    except OutOfSpace:
        print("refused", list(tier.folder.iterdir()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "refused []"


def test_damage_is_found(tier):
    tier.write("x", np.arange(5000.0)).wait()
    path = next(tier.folder.glob("*.tier"))
    content = bytearray(path.read_bytes())
    out = np.empty(5000)
    content[5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match="does not fit its checksum"):
        tier.read("x", out).wait()
    tier.read("x", out, verify=False).wait()
    path.write_bytes(content[:20_000])
    with pytest.raises(DamagedFile, match="was cut short"):
        tier.read("x", out)
    path.write_bytes(b"something else")
    with pytest.raises(DamagedFile, match="no header"):
        tier.read("x", out)


def test_bad_input(tier, tmp_path):
    tier.write("x", np.ones(4)).wait()
    with pytest.raises(ValueError, match="32 bytes, the array to fill has 40"):
        tier.read("x", np.ones(5))
    with pytest.raises(ValueError, match="contiguous"):
        tier.write("x", np.ones((4, 4))[:, ::2])
    with pytest.raises(ValueError, match="wanted at least 1 thread"):
        FileTier(tmp_path, threads=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        FileTier(tmp_path / "file" / "below")


def test_an_error_that_nobody_waited_for_is_raised_at_the_end(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output"), FileTier(tmp_path) as tier:
        monkeypatch.setattr(tier, "_one", lambda *a: broken() if a[2] else None)
        tier.write("x", np.ones(4))


WRITER = """
import sys, numpy as np
from common.offload import FileTier
with FileTier(sys.argv[1], chunk=65536) as tier:
    round = 0
    while True:
        round += 1
        tier.write("state", np.full(400_000, round, np.float64)).wait()
        print(round, flush=True)
"""


def test_kill_leaves_the_old_or_the_new(tmp_path):
    rng = np.random.default_rng(0)
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        said = [int(child.stdout.readline())]
        time.sleep(float(rng.uniform(0, 0.05)))
        child.send_signal(signal.SIGKILL)
        said += map(int, child.stdout.read().split())
        child.wait()
        out = np.zeros(400_000)
        with FileTier(tmp_path) as tier:
            tier.read("state", out).wait()
            assert not list(tmp_path.glob("*.part")), "what the killed process left is cleared"
        assert (out == out[0]).all() and out[0] in (said[-1], said[-1] + 1)
