"""What the paper reports and nothing here predicts: context for the figures of the notebook."""

ABSTRACT = {
    "size": (6.4, 12.7),
    "operations": (30.3, 62.0),
    "A100 latency": (1.39, 1.79),
    "A100 throughput": (3.22, 3.43),
    "Orin latency": (1.57, 1.69),
    "Orin throughput": (2.11, 2.51),
}
"""Ranges of the abstract: times smaller, times fewer operations, INT4 against FP32."""
