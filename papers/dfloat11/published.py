"""Figures that the models of memory and speed take from the paper and from data sheets; nothing predicted stands here."""

from common.architecture import Transformer

GB = 1e9

_LLAMA = {"heads": 32, "kv_heads": 8, "head_dim": 128, "context": 131072, "vocabulary": 128256, "tied": False}
LLAMA_31 = {
    "8B": Transformer(width=4096, depth=32, hidden=14336, **_LLAMA),  # type: ignore[arg-type]
    "70B": Transformer(width=8192, depth=80, hidden=28672, **{**_LLAMA, "heads": 64}),  # type: ignore[arg-type]
    "405B": Transformer(width=16384, depth=126, hidden=53248, **{**_LLAMA, "heads": 128}),  # type: ignore[arg-type]
}
"""Shapes of Llama 3.1 (its public configuration files)."""

A100_40GB = {"bytes": 40 * GB, "bytes_per_second": 1555e9, "flops": 312e12}
"""Memory, its bandwidth, dense bfloat16 peak (NVIDIA, A100 data sheet)."""

COPIES = {"pageable": 3e9, "pageable, fast": 6e9, "pinned, PCIe 3.0": 12e9, "pinned, PCIe 4.0": 25e9}
"""Bytes a second from host to GPU: assumed for pageable memory, usual figures of the links for pinned memory."""

DECODED_PER_SECOND = 300e9
"""Assumed: bytes of bfloat16 that the paper's kernel writes a second on an A100. The paper says up to 35 times a copy."""

CARD_24GB = 24 * GB
NODE_8X80GB = 640 * GB
