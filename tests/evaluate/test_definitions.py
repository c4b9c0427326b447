"""The table of average precisions in `fct_jax.evaluate.protocols` holds for the functions."""

import re

import numpy as np
import pytest

from fct_jax.evaluate import protocols
from fct_jax.evaluate.metrics import retrieval_metrics
from fct_jax.evaluate.protocols.landmarks import map_at_k, revisited_map
from fct_jax.evaluate.protocols.reid import market1501
from fct_jax.evaluate.protocols.verification import identification_per_probe
from fct_jax.evaluate.search import ranked_metrics
from fct_jax.upgrade.ways.relevance import by_labels, per_query

# One query, five items at growing distance; the second and the fourth are relevant.
LABELS = np.array([1, 0, 2, 0, 3])
ITEMS = np.arange(1.0, 6.0)[:, None]
RANKED = np.arange(5)[None]
# All scores of the angle grow with the distance of these from the first axis.
ANGLES = np.stack([np.cos(0.1 * ITEMS[:, 0]), np.sin(0.1 * ITEMS[:, 0])], axis=1)

FOUND = {
    "retrieval_metrics": lambda: retrieval_metrics([[0.0]], ITEMS, [0], LABELS)["map"],
    "ranked_metrics": lambda: ranked_metrics(RANKED, [0], LABELS, ks=(1,), map_at=3)["map@3"],
    "revisited_map": lambda: revisited_map(
        RANKED.T, [{"easy": [1, 3], "hard": [], "junk": []}]
    )["medium"]["map"],
    "map_at_k": lambda: map_at_k(RANKED, [[1, 3]], 3),
    "market1501": lambda: market1501(ITEMS.T, [0], LABELS, [0], np.ones(5, int))["map"],
    "identification": lambda: identification_per_probe([[1.0, 0.0]], [0], ANGLES, LABELS).ap[0],
    "per_query": lambda: per_query(RANKED[:, :3], by_labels([0], LABELS))["map"][0],
}  # fmt: skip


def test_every_row_of_the_table():
    """Rows begin with a name in backticks; their last number is the example's value."""
    said = {}
    for line in protocols.__doc__.splitlines():
        row = re.match(r"`[\w.]*?(\w+)`.* ([\d.]+)$", line)
        if row:
            said[row[1]] = float(row[2])
    assert said.keys() == FOUND.keys()
    for name, value in said.items():
        assert FOUND[name]() == pytest.approx(value, abs=5e-5), name
