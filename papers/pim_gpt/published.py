"""Constants of the paper and of data sheets with their source; nothing that is predicted stands here.

"recalled" marks a figure of the paper that could not be held against its text.
"""

from common.architecture import Transformer

TIMING = {"activate": 12, "precharge": 12, "column": 1, "write": 12, "refresh_interval": 6825, "refresh": 455}
"""tRCD, tRP, tCCD, tWR, tREFI, tRFC in ns (paper, simulator configuration; recalled)."""

ROW_OPEN = 21
"""tRAS in ns: 32 clocks of 0.66 ns (DRAMsim3's GDDR6_8Gb_x16, as PIMeval's pimParamsGDDRDram.cc repeats it)."""

VOLTAGE = 1.25
"""V (paper; recalled)."""

CURRENTS = {"IDD0": 71.0, "IDD2N": 60.0, "IDD3N": 61.0, "IDD4R": 248.0, "IDD4W": 231.0, "IDD5": 286.0}
"""mA of one channel (same file). The paper's own table is not at hand."""

MAC_OVER_READ = 3.0
"""Power of a column access in all banks over that of a read (CENT, cent_power_calculator.py: 3 x RD for MAC16)."""

PIN_ENERGY = 5.5
"""pJ a bit between memory and companion chip (CENT, cent_power_calculator.py)."""

ASIC = {"adders": 256, "multipliers": 128, "sram": 128 * 1024, "watts": 0.305}
"""The companion chip, 28 nm, 1 GHz (paper; recalled)."""

GPU_BANDWIDTH_SHARE = 0.6875
"""Share of the T4's 320 GB/s that reading reaches: 220 (Jia et al. 2019, Dissecting the Turing T4, arXiv 1903.07486; recalled)."""

XEON = {"bandwidth": 6 * 2666e6 * 8, "watts": 200.0, "launch": 1e-4}
"""Intel Xeon Gold 6154: B/s of six channels of DDR4-2666 and the thermal design power in W (Intel's product page; recalled). ``launch``:
seconds of framework overhead of a layer, about 20 operators of 5 us (own estimate; small beside the reading of the weights)."""

SPEED = ((41, 137), (631, 1074))
"""Speed-up over GPU and over CPU, least and greatest of eight models (abstract, both versions)."""

ENERGY = {"first version": ((339, 1085), (890, 1632)), "later version": ((123, 383), (320, 602))}
"""Energy efficiency over GPU and CPU (abstracts of arXiv v1 and of v2 and the journal); only the ratio of the powers of GPU and CPU
that these imply is computed from them."""

CALIBRATION = {"GPU": ("GPT2-small", 137.0), "CPU": ("GPT3-XL", 1074.0)}
"""The one model of each platform whose speed-up fits the baseline's constant: the upper end of each range in the abstract, put
at the model where this repository's simulator has it. Which model the paper has there is not known here."""


def _gpt(depth: int, width: int, head_dim: int, context: int) -> Transformer:
    heads = width // head_dim
    return Transformer(
        width=width, depth=depth, heads=heads, kv_heads=heads, head_dim=head_dim, hidden=4 * width, context=context,
        vocabulary=50257, feed_forward="gelu", norm="layer", positions="learned",
    )  # fmt: skip


MODELS = {
    "GPT2-small": _gpt(12, 768, 64, 1024),
    "GPT2-medium": _gpt(24, 1024, 64, 1024),
    "GPT2-large": _gpt(36, 1280, 64, 1024),
    "GPT2-XL": _gpt(48, 1600, 64, 1024),
    "GPT3-small": _gpt(12, 768, 64, 2048),
    "GPT3-medium": _gpt(24, 1024, 64, 2048),
    "GPT3-large": _gpt(24, 1536, 64, 2048),
    "GPT3-XL": _gpt(24, 2048, 128, 2048),
}
"""Layers and widths (paper; Radford et al. 2019; Brown et al. 2020, Table 2.1). GPT3-large has heads of 96 there, which do not
divide a DRAM row; heads of 64 are taken. No weight changes by that."""
