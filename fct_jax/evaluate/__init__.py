"""Retrieval metrics, backfilling curves and reports.

The names are imported when they are used, so that a command's --help answers at once.
"""
