"""First fit over memory that is cut into pieces: why a layer that would fit does not, and what tiles do about it."""

from __future__ import annotations

from papers.zero_infinity import memory, published


class FirstFit:
    """Holes of equal size, no two of which touch.

    Args:
        total, piece: bytes; the last hole is what is left.
    """

    def __init__(self, total: int, piece: int) -> None:
        if not 0 < piece <= total:
            raise ValueError(f"pieces of {piece} bytes cannot be cut from {total}; wanted 0 < piece <= total")
        self.holes = [piece] * (total // piece) + ([total % piece] if total % piece else [])

    def take(self, size: int) -> bool:
        """Whether some hole has ``size`` bytes; they are taken from the first that has."""
        for i, hole in enumerate(self.holes):
            if hole >= size:
                self.holes[i] -= size
                return True
        return False


def layer_fits(
    hidden: int, tiles: int, total: int = published.GPU_MEMORY, piece: int = published.FRAGMENT, item: int = memory.HALF
) -> bool:
    """Whether one of ``tiles`` equal tiles of the layer hd x 4 hd fits, its weight and its gradient each in one piece."""
    if tiles < 1:
        raise ValueError(f"tiles is {tiles}; wanted at least 1")
    size = -(-item * 4 * hidden * hidden // tiles)
    free = FirstFit(total, piece)
    return free.take(size) and free.take(size)


def table(hiddens: tuple[int, ...], tiles: tuple[int, ...], **options: int) -> dict[tuple[int, int], bool]:
    """:func:`layer_fits` for every pair (hidden, tiles)."""
    return {(hidden, count): layer_fits(hidden, count, **options) for hidden in hiddens for count in tiles}


def monotone(fits: dict[tuple[int, int], bool]) -> bool:
    """Whether more tiles never hurt and larger layers never help."""
    return all(
        low or not high
        for (hidden, count), high in fits.items()
        for (other, less), low in fits.items()
        if other <= hidden and less >= count
    )


def largest(fits: dict[tuple[int, int], bool], tiles: int) -> int:
    """Largest hidden size that fits with so many tiles; 0 if none does."""
    return max((hidden for (hidden, count), ok in fits.items() if ok and count == tiles), default=0)
