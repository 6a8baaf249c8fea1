"""Speed and memory, side by side: `pytest benchmarks/` writes one JSON record per run.

Reading order: measure.py (how a number comes about), limits.py (what the machine could do),
baselines.py and fusions.py (what is compared), test_*.py (the rows), report/ (page, pictures and
the documents' numbers), static/ (figures of the GPU kernels, read from compiled code).
"""
