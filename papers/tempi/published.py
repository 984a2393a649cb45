"""Constants from outside that the model of Summit uses. Nothing that is predicted stands here."""

RANKS, PER_NODE = 3072, 6
"""Processes and GPUs of a node: ``scripts/summit`` of the authors' code."""

GRID, LOCAL, RADIUS, QUANTITIES, ITEM = (24, 16, 8), 256, 3, 8, 8
"""Ranks along x, y, z; points of a rank along each axis; stencil; quantities of a point and bytes of each:
``bench_512node_astaroth.sh`` and ``bench_halo_exchange.cpp`` of the authors' code."""

OBJECT, BLOCK, STRIDE = 4 * 2**20, 1, 512
"""Bytes of the largest object of the two-dimensional sweep, of its shortest blocks, and between their beginnings:
``bench_mpi_pack.cpp``, ``bench_mpi_pingpong_nd.cpp``."""

COPY_SECONDS = 9.5e-6
"""One small copy within GPU memory, called and waited for, in the library that was deployed. Fitted on the largest speed-up of
MPI_Pack; such calls usually take 5 to 15 microseconds."""

LAUNCH_SECONDS = 10e-6
"""A kernel, launched and waited for: assumed, as such calls usually take; not from the paper."""

SECTOR = 32
"""Bytes that a V100's memory moves at least."""

RAILS = 2
"""EDR InfiniBand ports of a node of Summit."""

PEER_BANDWIDTH = 50e9
"""Bytes a second between two GPUs of a node in one direction: two NVLink 2 bricks of 25 GB/s."""
