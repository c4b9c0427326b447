"""Parts of ``tools/benchmark_scale.py``."""
