"""Hardware as data: the figures agree with each other by arithmetic, units cannot be mixed, doubts are noted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.hardware import GB, GIB, device, devices, doubtful, link, links, quantity, roofline, show

RIDGES = {
    "v100_sxm2": 139,
    "a100_80_sxm": 153,
    "h100_sxm": 295,
    "h100_pcie": 378,
    "rtx_4090": 164,
    "t4": 203,
    "l4": 403,
    "mi250x_gcd": 117,
}


@pytest.mark.parametrize("key", [key for key, each in devices().items() if each.record.lanes and each.record.boost])
def test_fp32_follows_from_clock_and_lanes(key: str) -> None:
    each = devices()[key]
    lanes, boost = each.record.lanes, quantity(each.record.boost or "", "1/s")
    assert each.record.multiprocessors and lanes
    # A10G: the vendor quotes less than its units and clock would give.
    tolerance = 0.12 if key == "a10g" else 0.01
    assert each.peak("fp32") == pytest.approx(each.record.multiprocessors * lanes * 2 * boost, rel=tolerance)


@pytest.mark.parametrize("key", [key for key, each in devices().items() if each.record.tensor_fma and "orin_nano" not in key])
def test_tensor_fp16_follows_from_clock_and_units(key: str) -> None:
    each = devices()[key]
    boost = quantity(each.record.tensor_boost or each.record.boost or "", "1/s")
    assert each.record.multiprocessors and each.record.tensor_fma
    assert each.peak("fp16") == pytest.approx(each.record.multiprocessors * each.record.tensor_fma * 2 * boost, rel=0.02)


@pytest.mark.parametrize(("key", "ridge"), RIDGES.items())
def test_ridge_points(key: str, ridge: float) -> None:
    assert device(key).ridge("fp16") == pytest.approx(ridge, abs=0.6)


def test_sparse_is_twice_dense() -> None:
    assert device("a100_40_sxm").peak("fp16", sparse=True) == 2 * device("a100_40_sxm").peak("fp16") == 624e12
    assert all(set(each.record.sparse) <= set(each.formats) for each in devices().values())


def test_doubtful_names_exist_and_sources_are_given() -> None:
    for each in [*devices().values(), *links().values()]:
        assert each.record.source
        for field in each.record.unsure:
            first, _, rest = field.partition(".")
            value = getattr(each.record, first)
            assert value is not None and (not rest or rest in value), f"{each.name}: {field}"


def test_links_of_devices_exist() -> None:
    for each in devices().values():
        if each.record.pcie:
            assert each.pcie.usable <= each.pcie.rate
    assert link("pcie_4_x16").seconds(25e9) == 1.0


def test_a_doubtful_figure_is_noted_when_used() -> None:
    assert device("a10g").peak("bf16") == 70e12
    assert "NVIDIA A10G: peak.bf16" in doubtful()
    assert not any("A100 SXM4 40" in each for each in doubtful())


def test_what_a_device_lacks_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"A100 .* has no fp8 units; it has fp64"):
        device("a100_80_sxm").peak("fp8")
    with pytest.raises(ValueError, match="no 2:4 sparse fp32"):
        device("h100_sxm").peak("fp32", sparse=True)
    with pytest.raises(ValueError, match="no device 'a1000'; known are v100"):
        device("a1000")
    with pytest.raises(ValueError, match="has no nvlink; add it"):
        _ = device("t4").nvlink


@given(st.floats(1e-3, 1e6), st.sampled_from(["k", "M", "G", "T"]))
def test_decimal_and_binary_prefixes_differ(number: float, prefix: str) -> None:
    power = " kMGT".index(prefix)
    assert quantity(f"{number!r} {prefix}B", "B") == pytest.approx(number * 1000**power)
    assert quantity(f"{number!r} {prefix.upper()}iB", "B") == pytest.approx(number * 1024**power)
    assert quantity(f"{number!r} {prefix}MAC/s", "OP/s") == 2 * quantity(f"{number!r} {prefix}FLOP/s", "OP/s")
    for wrong in ("B/s", "s", "W", "OP"):
        with pytest.raises(ValueError, match="wanted"):
            quantity(f"{number!r} {prefix}B", wrong)


@pytest.mark.parametrize("text", ["", "12", "12 GX", "GB", "1 KiFLOP/s", "1 GB/fortnight", "1.2.3 GB"])
def test_what_is_no_quantity_is_an_error(text: str) -> None:
    with pytest.raises(ValueError):
        quantity(text, "B")


def test_units_in_words() -> None:
    assert (quantity("80 GiB", "B"), quantity("80 GB", "B")) == (80 * GIB, 80 * GB)
    assert show(1.555e12, "B/s") == "1.555 TB/s"
    assert show(0.5, "s") == "0.5 s"


def test_roofline_on_numbers_and_arrays() -> None:
    a100 = device("a100_40_sxm")
    assert roofline(a100, 312e12, 0.0, "fp16") == 1.0
    assert roofline(a100, 0.0, 1555e9, "fp16", traffic=0.5) == 2.0
    operations, size = np.array([312e12, 1.0]), np.array([1.0, 1555e9])
    assert roofline(a100, operations, size, "fp16").tolist() == [1.0, 1.0]
    assert roofline(a100, torch.tensor(operations), 1.0, "fp16", sparse=True).tolist()[0] == 0.5
    with pytest.raises(ValueError, match="wanted a share of the peak"):
        roofline(a100, 1.0, 1.0, "fp16", compute=1.5)
