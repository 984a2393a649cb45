"""How a layer is cut into tiles, for both frameworks."""

from __future__ import annotations


def edges(features: int, splits: int) -> list[int]:
    """Where the parts begin, and the end of the last; the first ``features % splits`` parts have one feature more."""
    size, more = divmod(features, splits)
    return [i * size + min(i, more) for i in range(splits + 1)]


def check(in_features: int, out_features: int, in_splits: int, out_splits: int) -> None:
    """Refuse parts without a feature."""
    for name, features, splits in (("in", in_features, in_splits), ("out", out_features, out_splits)):
        if not 1 <= splits <= features:
            raise ValueError(f"{name}_splits is {splits} for {features} {name}_features; wanted 1 to {features}")
