"""Arrays of linear expressions: matrix @ variables + constant, with NumPy's broadcasting, indexing and sums."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array, vstack


class Expression:
    """An array of linear expressions in the variables of one model.

    It adds, subtracts and scales like a NumPy array, with broadcasting; ``[...]`` takes any NumPy index, ``sum`` any axes.
    Comparing it by <=, >= or == gives a :class:`Constraint` for every element.

    Attributes:
        matrix: a row for each element, a column for each variable that the model had when it was made.
        constant: the part without variables; its shape is the expression's.
    """

    __array_ufunc__ = None  # an array on the left leaves the operator to this class
    __hash__ = object.__hash__

    def __init__(self, matrix: csr_array, constant: Any) -> None:
        self.matrix, self.constant = matrix, np.asarray(constant, float)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.constant.shape

    def __add__(self, other: Any) -> Expression:
        if not isinstance(other, Expression):
            added = np.asarray(other, float)
            wide = self._broadcast(np.broadcast_shapes(self.shape, added.shape))
            return Expression(wide.matrix, wide.constant + added)
        shape = np.broadcast_shapes(self.shape, other.shape)
        a, b = self._broadcast(shape), other._broadcast(shape)
        columns = max(a.matrix.shape[1], b.matrix.shape[1])
        return Expression(csr_array(widen(a.matrix, columns) + widen(b.matrix, columns)), a.constant + b.constant)

    def __mul__(self, factor: Any) -> Expression:
        if isinstance(factor, Expression):
            raise TypeError("two expressions cannot be multiplied: the model is linear; add a variable for the product")
        factor = np.asarray(factor, float)
        wide = self._broadcast(np.broadcast_shapes(self.shape, factor.shape))
        factor = np.broadcast_to(factor, wide.shape)
        return Expression(csr_array(wide.matrix.multiply(factor.reshape(-1, 1))), wide.constant * factor)

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> Expression:
        return self * -1.0

    def __sub__(self, other: Any) -> Expression:
        return self + (-other if isinstance(other, Expression) else -np.asarray(other, float))

    def __rsub__(self, other: Any) -> Expression:
        return -self + other

    def __getitem__(self, index: Any) -> Expression:
        return self._rows(self._places()[index])

    def sum(self, axis: int | tuple[int, ...] | None = None) -> Expression:
        """The sums over the axes; over all of them if none is given."""
        axes = range(len(self.shape)) if axis is None else [axis] if isinstance(axis, int) else axis
        gone = {each % len(self.shape) for each in axes}
        kept = [each for each in range(len(self.shape)) if each not in gone]
        places = (
            self._places()
            .transpose([*kept, *gone])
            .reshape(math.prod(self.shape[each] for each in kept), math.prod(self.shape[each] for each in gone))
        )
        rows = np.repeat(np.arange(len(places)), places.shape[1])
        collect = csr_array((np.ones(places.size), (rows, places.ravel())), shape=(len(places), self.constant.size))
        return Expression(csr_array(collect @ self.matrix), self.constant.sum(axis=tuple(gone)))

    def __le__(self, other: Any) -> Constraint:
        return Constraint(self - other, -np.inf, 0.0)

    def __ge__(self, other: Any) -> Constraint:
        return Constraint(self - other, 0.0, np.inf)

    def __eq__(self, other: Any) -> Constraint:  # type: ignore[override]
        return Constraint(self - other, 0.0, 0.0)

    def _places(self) -> np.ndarray:
        return np.arange(self.constant.size).reshape(self.shape)

    def _rows(self, places: Any) -> Expression:
        return Expression(self.matrix[np.ravel(places)], self.constant.ravel()[places] + np.zeros(np.shape(places)))

    def _broadcast(self, shape: tuple[int, ...]) -> Expression:
        return self if shape == self.shape else self._rows(np.broadcast_to(self._places(), shape))


class Variables(Expression):
    """A family of variables: an array of one name, with bounds; all whole numbers or all real."""

    def __init__(self, name: str, shape: tuple[int, ...], start: int, low: Any, high: Any, integer: bool) -> None:
        size = math.prod(shape)
        columns = np.arange(start, start + size)
        super().__init__(csr_array((np.ones(size), (np.arange(size), columns)), shape=(size, start + size)), np.zeros(shape))
        self.name, self.start, self.integer = name, start, integer
        self.low, self.high = (np.broadcast_to(np.asarray(each, float), shape) for each in (low, high))
        if (self.low > self.high).any():
            raise ValueError(f"variables {name!r}: a lower bound is above its upper bound; wanted low <= high")


@dataclass(frozen=True)
class Constraint:
    """low <= expression <= high, for every element."""

    expression: Expression
    low: float
    high: float


def widen(matrix: csr_array, columns: int) -> csr_array:
    """The same rows with room for more variables."""
    if matrix.shape[1] == columns:
        return matrix
    return csr_array((matrix.data, matrix.indices, matrix.indptr), shape=(matrix.shape[0], columns))


def stack(matrices: list[csr_array], columns: int) -> csr_array:
    """One above the other."""
    return csr_array(vstack([widen(each, columns) for each in matrices])) if matrices else csr_array((0, columns))
