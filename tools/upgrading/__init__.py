"""Parts of tools/benchmark_upgrade.py: pairs of models, the measurement of one, the report."""
