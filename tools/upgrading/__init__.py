"""Parts of tools/benchmark_upgrade.py: pairs of models, what is measured of one, the report."""
