"""Any way of the table served by NumPy alone: one file has what a search needs besides vectors.

`export_way` writes it, `PlainSearch` reads it and searches arrays. It imports neither JAX nor
Faiss nor Numba::

    export_way("fused.npz", "fused", calibration=calibration)     # where fct_jax is installed
    found = PlainSearch("fused.npz")                              # in the service
    scores, rows = found.search(10, migrated, query_old=q, query_new=p, old=old, new=new)
"""

import functools
import json
from pathlib import Path

import numpy as np

from fct_jax.errors import UserError
from fct_jax.evaluate.distances import unit_rows
from fct_jax.upgrade.maps.backward import Backward
from fct_jax.upgrade.stores.affine import StoreCalibration
from fct_jax.upgrade.ways import PAIRS, Asked, Mix, Way, angle_between, find_way
from fct_jax.upgrade.ways.moving import add_moved
from fct_jax.upgrade.ways.stages import second_stage, union

FORMAT_VERSION = 1
_BLOCK = 128  # queries scored against the gallery together
_SAMPLE = 1 << 16  # rows whose mean is the centre of an L2 space
_CALIBRATION = ("old", "new", "centre_old", "centre_new")


def export_way(
    path, way: str | Way, *, calibration=None, bridge=None, backward=None, metric: str = "cosine"
) -> Path:
    """Write one ``.npz`` file with a way, its settings, and what they need. Returns its path.

    Args:
      path: file to write; it must not exist.
      way: a name of `WAYS`, or a `Way` with other settings (`Way.having`).
      calibration: a `Calibration`, for ways in which scores of two spaces meet.
      bridge: a Map from new to old vectors, for ways that need bridged queries.
      backward: the backward map of a common space, for ways that need it, as for `search`.
      metric: "l2" or "cosine", without a calibration.

    Raises:
      UserError: something that the way needs is missing or has no plain form, or a file that
        exists.
    """
    way, path = find_way(way), Path(path)
    if path.exists():
        raise UserError(f"{path} exists already; nothing was overwritten")
    described = {"format_version": FORMAT_VERSION, "way": way.name, "metric": metric}
    described["settings"] = dict(way.settings)
    arrays = {}
    for wanted, given, name in (
        (way.calibrated, calibration, "calibration"),
        ("bridged" in way.queries, bridge, "bridge"),
        (way.needs_backward, backward, "backward"),
    ):
        if wanted and given is None:
            raise UserError(f"{way.name} search needs {name}=…")
    if way.calibrated:
        if calibration.weights.damping:
            raise UserError("a calibration that damps crowded items has no plain form")
        described |= {
            "metric_old": calibration.old.metric,
            "metric_new": calibration.new.metric,
            "spread": list(calibration.spread),
            "weights": vars(calibration.weights),
        }
        parts = (calibration.reference_old, calibration.reference_new)
        parts += (calibration.old.centre, calibration.new.centre)
        arrays |= dict(zip(_CALIBRATION, parts, strict=True))
    if "bridged" in way.queries:
        layers = bridge.function.layers(bridge.dim_in)
        if layers is None:
            raise UserError(f"the {bridge.method} map has no plain form; fit a linear bridge")
        described |= {"layers": len(layers), "unit": bool(bridge.unit_output)}
        for i, (weight, bias) in enumerate(layers):
            arrays |= {f"{i}.weight": np.asarray(weight), f"{i}.bias": np.asarray(bias)}
    if way.needs_backward:
        arrays |= {"backward": backward.weight, "backward_bias": backward.bias}
    np.savez(path, described=np.array(json.dumps(described)), **arrays)
    return path


class PlainSearch:
    """A way that `export_way` wrote; its ``search`` gives what ``fct_jax.upgrade.search`` does."""

    def __init__(self, path):
        """Read the file. Raises UserError if it cannot be read."""
        try:
            with np.load(path, allow_pickle=False) as file:
                self._arrays = dict(file)
            self._described = json.loads(str(self._arrays.pop("described")))
        except (OSError, ValueError, EOFError, KeyError) as error:
            raise UserError(f"{path} is no exported way of serving: {error}") from None
        if self._described["format_version"] > FORMAT_VERSION:
            raise UserError(f"{path} was written by a newer fct_jax")
        self.way = find_way(self._described["way"])
        if self._described["settings"]:
            self.way = self.way.having(**self._described["settings"])
        self._calibration = None
        if self.way.calibrated:
            self._calibration = StoreCalibration.of(self._described, self._arrays)

    def search(
        self, k: int, migrated, *, query_old=None, query_new=None, old=None, new=None,
        translated=None,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Return scores (Q, k) float32, descending, and rows (Q, k); −inf and −1 for missing ones.

        migrated: (N,) bool; the others are (Q, do), (Q, dn), (N, do), (N, dn) and (N, dn), of
        which those that the way does not need may be None.
        """
        items = {"old": old, "new": new, "translated": translated}
        items = {kind: np.asarray(v, np.float32) for kind, v in items.items() if v is not None}
        queries = {"old": query_old, "new": query_new}
        queries = {kind: np.asarray(v, np.float32) for kind, v in queries.items() if v is not None}
        if "bridged" in self.way.queries:
            queries["bridged"] = self._bridged(queries["new"])
        if self.way.needs_backward:
            backward = Backward(self._arrays["backward"], self._arrays["backward_bias"])
            add_moved(self.way, queries, items, backward)
            items = {kind: np.asarray(v[:]) for kind, v in items.items() if v is not None}
        for kind in self.way.queries:
            if kind not in queries:
                raise UserError(f"{self.way.name} search needs query_{kind}=…")
        for kind in (*self.way.items, *(("new",) if self.way.reembeds else ())):
            if kind not in items:
                raise UserError(f"{self.way.name} search needs {kind}=…")
        total = len(next(iter(queries.values())))
        spaces = self._spaces(items)
        prepared = {kind: _items(spaces[kind], rows) for kind, rows in items.items()}
        parts = [
            self._block({kind: v[i : i + _BLOCK] for kind, v in queries.items()},
                        prepared, spaces, np.asarray(migrated), k)
            for i in range(0, total, _BLOCK)
        ]  # fmt: skip
        return tuple(np.concatenate(part) for part in zip(*parts, strict=True))

    def _block(self, queries: dict, items: dict, spaces: dict, migrated, k: int):
        affine = None
        if self._calibration is not None:
            affine = functools.cache(
                lambda: self._calibration.affine(queries["old"], queries["new"], prepared=True)
            )
        asked = Asked(self.way, affine, lambda: angle_between(queries["old"], queries["bridged"]))

        def scored(mix: Mix) -> np.ndarray:
            total = np.reshape(np.asarray(mix.shift, np.float64), (-1, 1))
            for name, factor in mix.factors.items():
                by, of = PAIRS[name]
                near = _queries(spaces[of], queries[by]) @ items[of].T
                total = total + np.reshape(np.asarray(factor, np.float64), (-1, 1)) * near
            return total

        way, count = self.way, len(migrated)
        left = scored(way.left(asked))
        if way.reranked is None:
            done = left if way.done is None else scored(way.done(asked))
            return _first(np.where(migrated, done, left), k)
        depth = min(int(way.settings["depth"]), count)
        _, rows = _first(left, min(max(k, depth), count))
        if way.beside is not None:
            _, others = _first(scored(way.beside(asked)), rows.shape[1])
            rows = union(rows, others)[:, : rows.shape[1]]
        first = np.take_along_axis(left, rows, 1)
        anew = np.take_along_axis(scored(way.reranked(asked)), rows[:, :depth], 1)
        scores, rows = second_stage(first, rows, anew, migrated, k)
        missing = ((0, 0), (0, k - rows.shape[1]))
        return np.pad(scores, missing, constant_values=-np.inf), np.pad(
            rows, missing, constant_values=-1
        )

    def _bridged(self, vectors) -> np.ndarray:
        rows = np.asarray(vectors, np.float32)
        for i in range(self._described["layers"]):
            rows = np.maximum(rows, 0) if i else rows
            rows = rows @ self._arrays[f"{i}.weight"] + self._arrays[f"{i}.bias"]
        return unit_rows(rows) if self._described["unit"] else rows

    def _spaces(self, items: dict) -> dict[str, tuple[str, np.ndarray]]:
        """Return metric and centre of each kind of item vectors."""
        if self._calibration is not None:
            old, new = (
                (self._described[f"metric_{name}"], self._arrays[f"centre_{name}"])
                for name in ("old", "new")
            )
            return {"old": old, "new": new, "translated": new}
        found = {}
        for kind, rows in items.items():
            sample = items.get({"new": "translated", "moved": "forward"}.get(kind, kind), rows)
            centre = np.asarray(sample[:_SAMPLE], np.float64).mean(axis=0).astype(np.float32)
            found[kind] = self._described["metric"], centre
        return found


def _items(space: tuple[str, np.ndarray], vectors: np.ndarray) -> np.ndarray:
    metric, centre = space
    if metric == "cosine":
        return unit_rows(vectors)
    rows = vectors - centre
    half = np.einsum("nd,nd->n", rows, rows, dtype=np.float64) / 2
    return np.concatenate([rows, -half[:, None].astype(np.float32)], axis=1)


def _queries(space: tuple[str, np.ndarray], vectors: np.ndarray) -> np.ndarray:
    metric, centre = space
    if metric == "cosine":
        return unit_rows(vectors)
    return np.concatenate([vectors - centre, np.ones((len(vectors), 1), np.float32)], axis=1)


def _first(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best, of equal scores the lower row first, filled with −inf and −1."""
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    missing = ((0, 0), (0, k - rows.shape[1]))
    found = np.take_along_axis(scores, rows, 1).astype(np.float32)
    return (
        np.pad(found, missing, constant_values=-np.inf),
        np.pad(rows, missing, constant_values=-1),
    )
