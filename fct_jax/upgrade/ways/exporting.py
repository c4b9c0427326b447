"""Exporting a way of serving from what an upgrade has: a report, maps, or pairs of vectors."""

from collections.abc import Mapping
from pathlib import Path

from fct_jax.errors import UserError
from fct_jax.upgrade.inputs import paired
from fct_jax.upgrade.maps.common_space import closed_form_turn
from fct_jax.upgrade.maps.fitting import fit
from fct_jax.upgrade.maps.loading import load_map
from fct_jax.upgrade.stores.samples import SAMPLE, open_pair
from fct_jax.upgrade.ways import Way, find_way
from fct_jax.upgrade.ways.calibration import Calibration, calibrate
from fct_jax.upgrade.ways.plain import export_way
from fct_jax.upgrade.ways.scores import chosen_metric


def export(
    way: str | Way,
    out,
    *,
    report=None,
    map=None,
    bridge=None,
    old=None,
    new=None,
    metric: str = "",
    settings: Mapping[str, object] | None = None,
    sample: int = SAMPLE,
    seed: int = 0,
) -> Path:
    """Write one ``.npz`` file by which a service searches in a way, with NumPy alone.

    Whatever a way needs and is not given is learnt from the pairs ``old`` and ``new``.

    Args:
      way: a name of `WAYS`, or a `Way`.
      out: the file to write.
      report: directory that ``assess`` wrote, whose calibration is used.
      map: a map by the method "common" or "common_relaxed" (or its directory), whose common space
        is used; None: the space in closed form.
      bridge: a linear map from new to old vectors (``fit`` with direction="backward"), or its
        directory; None: ridge.
      old, new: items embedded by both models, as for ``fit``.
      metric: "l2" or "cosine"; "" as the new vectors say.
      settings: settings of the way, for example {"depth": 50}.
      sample, seed: number of items taken from a store, and the seed.

    Returns the path.

    Raises:
      UserError: something that the way needs is missing or has no plain form, or a file that
        exists.

    Example: ``export("fused", "fused.npz", report="report")``, then ``PlainSearch("fused.npz")``.
    """
    way, out = find_way(way), Path(out)
    if settings:
        way = way.having(**settings)
    if out.suffix != ".npz":
        raise UserError(f"the exported file must be named NAME.npz, not {out}")
    if (old is None) != (new is None):
        raise UserError("old and new belong together: give both, or neither")
    pairs = None if old is None else paired(*open_pair(old, new, sample, seed))
    if pairs is not None:
        metric = chosen_metric(metric, pairs[1].vectors, pairs[1].meta.get("metric"))[0]
    given = None if map is None else load_map(map)
    made = {"metric": metric or (given.metric if given is not None else "cosine")}
    if way.calibrated:
        if report is not None:
            made["calibration"] = Calibration.load(Path(report) / "calibration")
        else:
            wanted = _needed(pairs, way, "a calibration: --report REPORT, that assess wrote")
            made["calibration"] = calibrate(*wanted, metric=metric, seed=seed)
    if "bridged" in way.queries:
        if bridge is not None:
            made["bridge"] = load_map(bridge)
            if made["bridge"].direction != "backward":
                raise UserError(f"{bridge} is no bridge: fit one with --direction backward")
        else:
            _needed(pairs, way, "a bridge: --bridge MAP, fitted with --direction backward")
            made["bridge"] = fit(
                *pairs, method="ridge", direction="backward", uncertainty=False, seed=seed
            )
    if way.needs_backward:
        made["backward"] = None if given is None else given.backward
        if given is not None and given.backward is None:
            raise UserError(f"{map} has no common space: it needs a map by the method common")
        if made["backward"] is None:
            wanted = _needed(pairs, way, "a common space: --map MAP, by the method common")
            made["backward"] = closed_form_turn(wanted[1], wanted[0])
    return export_way(out, way, **made)


def _needed(pairs, way: Way, what: str):
    """Return the vectors of the pairs. Raises UserError if there are none."""
    if pairs is None:
        raise UserError(f"{way.name} needs {what}, or OLD and NEW to learn it from")
    return tuple(part.vectors for part in pairs)
