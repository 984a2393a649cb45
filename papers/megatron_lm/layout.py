"""Which rank holds what: n = t p d ranks, v chunks of layers on each, and what cannot be split is refused with its numbers."""

from __future__ import annotations

from dataclasses import dataclass

from papers.megatron_lm.shape import Shape


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A layout of n = t p d ranks.

    Attributes:
        tensor: t, ranks that share every layer.
        pipeline: p, ranks that share the depth.
        data: d, replicas.
        chunks: v, pieces of the depth on each pipeline rank; rank r holds stages r, p + r, 2 p + r, ...
        microbatch: b, sequences.
    """

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    chunks: int = 1
    microbatch: int = 1

    def __post_init__(self) -> None:
        for name in ("tensor", "pipeline", "data", "chunks", "microbatch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted 1 or more")
        if self.chunks > 1 and self.pipeline == 1:
            raise ValueError(f"{self.chunks} chunks with pipeline=1: there is no bubble to shrink; set chunks=1 or pipeline > 1")

    def __str__(self) -> str:
        return f"t={self.tensor} p={self.pipeline} d={self.data} v={self.chunks}"

    @property
    def ranks(self) -> int:
        return self.tensor * self.pipeline * self.data

    @property
    def stages(self) -> int:
        """Stages of the model, p v."""
        return self.pipeline * self.chunks

    def microbatches(self, batch: int) -> int:
        """m = B / (d b).

        Raises:
            ValueError: the batch cannot be split so, or with v > 1 m is no multiple of p.
        """
        if batch % (self.data * self.microbatch):
            raise ValueError(
                f"a batch of {batch} cannot be split over data={self.data} replicas into microbatches of {self.microbatch}; "
                f"wanted a multiple of {self.data * self.microbatch}"
            )
        count = batch // (self.data * self.microbatch)
        if self.chunks > 1 and count % self.pipeline:
            raise ValueError(
                f"{count} microbatches on {self.pipeline} pipeline ranks with {self.chunks} chunks; the interleaved schedule "
                f"wants a multiple of {self.pipeline}"
            )
        return count

    def check(self, shape: Shape, world: int | None = None) -> None:
        """Refuse what this layout cannot hold.

        Raises:
            ValueError: layers that p v does not divide, heads that t does not divide, or another number of ranks.
        """
        if shape.depth % self.stages:
            raise ValueError(
                f"{shape.depth} layers cannot be split into pipeline={self.pipeline} x chunks={self.chunks} equal stages; "
                f"wanted a multiple of {self.stages}"
            )
        if shape.heads % self.tensor:
            raise ValueError(f"{shape.heads} heads cannot be split over tensor={self.tensor} ranks; wanted a multiple")
        if world is not None and world != self.ranks:
            raise ValueError(
                f"{world} ranks for tensor={self.tensor} x pipeline={self.pipeline} x data={self.data} = {self.ranks}; "
                "start as many ranks as the layout has"
            )

    def layers(self, shape: Shape, stage: int) -> range:
        """The layers of a stage."""
        each = shape.depth // self.stages
        return range(stage * each, (stage + 1) * each)

    def stage(self, rank: int, chunk: int) -> int:
        """The stage that a pipeline rank holds as its chunk."""
        return chunk * self.pipeline + rank
