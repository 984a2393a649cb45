"""Memory in tiers: a device arena with a hard byte budget, a host pool, files, and the queues that copy between them.

    arena = Arena(64 * MIB)                          # what the "GPU" may hold; more raises OutOfBudget
    pool = Pool(1024 * MIB)                          # host memory, pinned where there is CUDA
    trace = Trace()                                  # every move: name, lane, bytes, start, end
    with copy_queue("upload", trace=trace) as upload, FileTier(folder, trace=trace) as files:
        block = arena.allocate(weights.nbytes, "block 0")
        upload.copy(block.numpy("float32"), weights, name="block 0").wait()
        files.write("block 0", weights).wait()

Without a GPU the arena is a block of RAM that buffers are carved from, and the queues are threads that may be throttled to
the speed of a link. What is counted is the same in both cases: bytes held, bytes moved. No framework is imported here.
"""

from common.offload.files import DamagedFile, FileTier, OutOfSpace
from common.offload.memory import ALIGNMENT, MIB, Arena, Block, OutOfBudget, Pool, Slots
from common.offload.queues import Handle, Queue, StreamQueue, ThreadQueue, copy_queue, here
from common.offload.trace import Move, Trace

__all__ = [
    "ALIGNMENT",
    "MIB",
    "Arena",
    "Block",
    "DamagedFile",
    "FileTier",
    "Handle",
    "Move",
    "OutOfBudget",
    "OutOfSpace",
    "Pool",
    "Queue",
    "Slots",
    "StreamQueue",
    "ThreadQueue",
    "Trace",
    "copy_queue",
    "here",
]
