"""The rankings behind an assessment, as TREC runs, for other tools to judge."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fct_jax.storage.files import new_directory
from fct_jax.storage.trec import write_run
from fct_jax.upgrade.assessment.curves import Curves
from fct_jax.upgrade.assessment.verdict import Verdict
from fct_jax.upgrade.assessment.world import KEEP, TRANSLATE, WHOLE, Spot


def write_runs(
    folder, curves: Curves, spots: Sequence[Spot], verdict: Verdict, query_ids, item_ids
) -> None:
    """Write keep.run, re-embed_all.run and, if a way is advised, advised.run.

    folder: directory to make. query_ids: (Q,); item_ids: (N,) ids of the searched gallery.
    """
    advised = [spot for spot in spots if _is_advised(spot, verdict)][:1]
    names = {(KEEP, "", 0.0): "keep", (TRANSLATE, "", 0.0): "translate"}
    names |= {(WHOLE, "", 1.0): "re-embed_all"}
    names |= {spot.name: "advised" for spot in advised}
    with new_directory(Path(folder)) as made:
        for name, (scores, rows) in curves.rankings(advised).items():
            found = np.where(rows >= 0, scores, -np.inf)
            tag = name[0].replace(" ", "_")
            write_run(made / f"{names[name]}.run", query_ids, item_ids[rows], found, tag)


def _is_advised(spot: Spot, verdict: Verdict) -> bool:
    return (spot.way.name, dict(spot.way.settings), spot.share) == (
        verdict.way, dict(verdict.settings), verdict.share,
    ) and verdict.order in (None, spot.order)  # fmt: skip
