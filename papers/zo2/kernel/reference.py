"""The definition on NumPy: 64-bit integers for the products, float64 for the normals."""

from __future__ import annotations

from typing import Any

import numpy as np

MULTIPLIERS, WEYL = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)
WORD = np.uint64(0xFFFFFFFF)


def philox(counter: Any, key: Any) -> Any:
    c0, c1, c2, c3 = np.asarray(counter).astype(np.uint64).T
    k0, k1 = (int(each) for each in np.asarray(key))
    for _ in range(10):
        a, b = np.uint64(MULTIPLIERS[0]) * c0, np.uint64(MULTIPLIERS[1]) * c2
        c0, c1, c2, c3 = (b >> np.uint64(32)) ^ c1 ^ np.uint64(k0), b & WORD, (a >> np.uint64(32)) ^ c3 ^ np.uint64(k1), a & WORD
        k0, k1 = (k0 + WEYL[0]) % 2**32, (k1 + WEYL[1]) % 2**32
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def gaussian(like: Any, *, seed: Any, parameter: int = 0, offset: int = 0) -> Any:
    first, count = offset // 4, like.size
    blocks = np.arange(first, -(-(offset + count) // 4), dtype=np.uint64)
    counter = np.zeros((blocks.size, 4), np.uint32)
    counter[:, 0], counter[:, 2] = blocks, parameter
    key = np.array([int(seed) % 2**32, int(seed) // 2**32] if np.ndim(seed) == 0 else seed, np.uint32)
    u = ((philox(counter, key) // 2**9).astype(np.float64) + 0.5) / 2**23
    radius, angle = np.sqrt(-2 * np.log(u[:, ::2])), 2 * np.pi * u[:, 1::2]
    z = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    skip = offset - 4 * first
    return z.reshape(-1)[skip : skip + count].reshape(like.shape).astype(like.dtype)


def perturb(theta: Any, *, scale: Any, seed: Any, parameter: int = 0, offset: int = 0, keep: Any = 1.0) -> Any:
    return keep * theta + scale * gaussian(theta, seed=seed, parameter=parameter, offset=offset)
