"""A 3-D halo exchange in plain mpi4py: 26 neighbours, any radius, several quantities, one Neighbor_alltoallw a step.

    mpiexec -n 4 python halo3d.py --size 64 --radius 2 --quantities 4 --steps 20 --out times.json

It knows nothing of any layer. Every point holds a number made from its place in the whole domain, so each halo can be
checked against what it must hold. Rank 0 writes the seconds of each step, and a checksum of what all ranks hold at the end.
"""

import argparse
import hashlib
import itertools
import json
import time

import numpy as np
from mpi4py import MPI


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=64, help="points of a rank along each axis")
    parser.add_argument("--radius", type=int, default=2)
    parser.add_argument("--quantities", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", default=None)
    options = parser.parse_args()

    comm = MPI.COMM_WORLD
    dims = MPI.Compute_dims(comm.size, 3)
    place = np.array(np.unravel_index(comm.rank, dims))
    n, r, q = options.size, options.radius, options.quantities
    field = np.full((q, n + 2 * r, n + 2 * r, n + 2 * r), -1.0)
    field[:, r : r + n, r : r + n, r : r + n] = truth(place, dims, n, q, 0)

    directions = [d for d in itertools.product((-1, 0, 1), repeat=3) if any(d)]
    targets = [int(np.ravel_multi_index((place + d) % dims, dims)) for d in directions]
    sources = [int(np.ravel_multi_index((place - d) % dims, dims)) for d in directions]
    graph = comm.Create_dist_graph_adjacent(sources, targets)
    inner = [region(field.shape, n, r, d, outside=False) for d in directions]
    # What a neighbour sends in a direction arrives at the opposite side.
    outer = [region(field.shape, n, r, tuple(-x for x in d), outside=True) for d in directions]
    ones, zeros = [1] * len(directions), [0] * len(directions)

    taken = []
    for _ in range(options.steps + 1):
        graph.Barrier()
        start = time.perf_counter()
        graph.Neighbor_alltoallw([field, ones, zeros, inner], [field, ones, zeros, outer])
        taken.append(graph.allreduce(time.perf_counter() - start, MPI.MAX))
    wrong = int((field != truth(place, dims, n, q, r)).sum())
    digests = comm.allgather(hashlib.sha256(field.tobytes()).hexdigest())
    wrong = comm.allreduce(wrong)
    for each in (*inner, *outer):
        each.Free()
    graph.Free()
    if comm.rank == 0:
        digest = hashlib.sha256("".join(digests).encode()).hexdigest()
        result = {"seconds": taken[1:], "wrong": wrong, "digest": digest, "ranks": comm.size}
        if options.out:
            with open(options.out, "w") as file:  # noqa: PTH123
                json.dump(result, file)
        else:
            print(json.dumps(result))


def region(shape, n, r, direction, outside):
    """The datatype of one side of the field, all quantities: within the domain, or in its halo."""
    starts, sizes = [0], [shape[0]]
    for d in direction:
        at = {-1: 0 if outside else r, 0: r, 1: n + r if outside else n}[d]
        starts.append(at)
        sizes.append(r if d else n)
    return MPI.DOUBLE.Create_subarray(shape, sizes, starts).Commit()


def truth(place, dims, n, q, r):
    """What the points of a rank hold, with a halo of r points from the periodic domain."""
    axes = [(np.arange(-r, n + r) + n * p) % (n * d) for p, d in zip(place, dims, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    points = (z * dims[1] * n + y) * dims[2] * n + x
    return points[None] + np.arange(q)[:, None, None, None] * 1e9


if __name__ == "__main__":
    main()
