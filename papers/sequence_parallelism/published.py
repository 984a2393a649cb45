"""Constants from outside; nothing that is predicted stands here."""

from papers.sequence_parallelism.encoder import Shape

BERT_BASE = Shape(width=768, depth=12, heads=12, length=512, vocabulary=30522)
"""Devlin et al. 2019, section 3, and the vocabulary of the released model."""

BATCH_LENGTH, LENGTH_BATCH = 512, 64
"""Tokens where the largest batch is sought, and sequences where the largest length is (Li et al. 2023, sections 4.2, 4.3)."""

LINFORMER_ROWS, SPARSE_BATCH, SPARSE_DEVICES = 256, 4, 32
"""Rows of the projections, sequences and devices where the longest sequence with sparse attention is sought (section 4.5; the
first two are recalled)."""

NUMBER_BYTES = 4
"""float32."""
