"""The table of methods for fitting a map, and the fit of one of them with its uncertainty.

A new method is one function and one row:

- a closed form of sums over the pairs: ``closed_form(solve)``, see ``linear.py``;
- any other method: a function from `Pairs` to a `Function`;
- a method that needs no pairs: ``fit_unpaired``.

A method of your own need not be in the table. Write it in a module, and name it "module:NAME"
wherever a method is named (another package may register it by an entry point of the group
``fct_jax.maps``)::

    # mymaps.py
    import numpy as np

    from fct_jax.upgrade.maps.functions import Linear
    from fct_jax.upgrade.maps.methods import Method

    def shift(pairs):                                       # adds a constant
        old, new = pairs.old.vectors, pairs.new.vectors
        return Linear(np.eye(old.shape[1]), 1.0, new.mean(axis=0) - old.mean(axis=0))

    SHIFT = Method(fit=shift, text="adds the difference of the means")

    # fct-jax fit OLD NEW --method mymaps:SHIFT
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from fct_jax.errors import UserError
from fct_jax.evaluate.distances import unit_rows
from fct_jax.runtime.plugins import find
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.upgrade.inputs import FEWEST, are_unit, take
from fct_jax.upgrade.maps import fits, linear
from fct_jax.upgrade.maps.functions import Called, Function, Identity, Linear, parts_of
from fct_jax.upgrade.maps.map import Map
from fct_jax.upgrade.maps.uncertainty import SAMPLE, fit_regressor, log_squared_error

_LARGE = 1024  # dimensions from which fewer folds are solved


@dataclasses.dataclass(frozen=True)
class Training:
    """Size and length of a network's training; 0 has the same meaning as in ``fit``."""

    inner_dim: int
    epochs: int
    batch_size: int


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The items that a method is fitted on, embedded by both models, in one order.

    Attributes:
      old: N vectors (N, do).
      new: N vectors (N, dn).
      labels: (N,) integers or None.
      classifier: classifier of the new model, in the forms that ``fit`` takes.
      training: settings of a network's training.
      seed: seed of all random choices.
    """

    old: EmbeddingSet
    new: EmbeddingSet
    labels: np.ndarray | None
    classifier: object
    training: Training
    seed: int

    def __len__(self) -> int:
        return len(self.new)

    def of(self, rows: np.ndarray) -> "Pairs":
        """Return some of the pairs."""
        labels = None if self.labels is None else self.labels[rows]
        return dataclasses.replace(
            self, old=take(self.old, rows), new=take(self.new, rows), labels=labels
        )


# (pairs, fold of each pair, number of folds) -> (function of all pairs, of all but each fold)
FoldFit = Callable[[Pairs, np.ndarray, int], tuple[Function, list[Function]]]


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to fit a map.

    Attributes:
      text: a one-line description.
      fit: fits the function on some pairs.
      fit_folds: replaces ``fit`` for methods that fit the functions of all folds for about the
        cost of one; the uncertainty is then learnt from all pairs.
      fixed: makes the function of a method without anything to fit.
      fit_unpaired: replaces ``fit`` for methods that need no pairs: from old vectors (N, do), new
        vectors (M, dn) of other items and a seed to the function, and a sentence for the user.
      own_uncertainty: whether its function gives log-variances.
      quick: whether to fit twice: without a tenth of the pairs, to learn the uncertainty from that
        tenth, and then on all pairs. Other methods with ``fit`` are only fitted without the tenth.
      same_size: whether old and new vectors must have the same dimension.
      fewest: gives the smallest number of pairs to fit on, from (do, dn).
      instead: the method used if there are fewer pairs; "" if there is none.
      auto: whether "auto" tries it; methods that take minutes longer than FCT are not tried.
    """

    text: str
    fit: Callable[[Pairs], Function] | None = None
    fit_folds: FoldFit | None = None
    fixed: Callable[[], Function] | None = None
    fit_unpaired: Callable[[np.ndarray, np.ndarray, int], tuple[Function, str]] | None = None
    own_uncertainty: bool = False
    quick: bool = False
    same_size: bool = False
    fewest: Callable[[int, int], int] = lambda do, dn: FEWEST
    instead: str = "procrustes"
    auto: bool = True

    @property
    def fitted(self) -> bool:
        """Return whether it can be fitted at all."""
        return any(fit is not None for fit in (self.fit, self.fit_folds, self.fit_unpaired))

    def refusal(self, count: int, do: int, dn: int) -> str:
        """Return why it cannot be fitted on ``count`` pairs of these dimensions, or ""."""
        if self.fit_unpaired is not None:
            return "it takes no pairs, so it is fitted alone, as the method and not as a candidate"
        if not self.fitted:
            return "it is trained together with the new model; name its run instead"
        if self.same_size and do != dn:
            return f"it needs equal dimensions, but old vectors have {do} and new ones {dn}"
        if count < self.fewest(do, dn):
            return f"it needs {self.fewest(do, dn):,} pairs to fit on, and there are {count:,}"
        return ""


def closed_form(solve) -> FoldFit:
    """Return the ``fit_folds`` of a closed form; see ``linear.py``."""

    def fit_folds(pairs: Pairs, fold: np.ndarray, folds: int):
        return solve(*linear.fold_sums(pairs.old.vectors, pairs.new.vectors, fold, folds))

    return fit_folds


# name -> method, the simplest first: "auto" takes the first of equally good ones.
METHODS: dict[str, Method] = {
    "identity": Method(
        text="the unchanged old vectors: for a new model trained to be compatible",
        fit_folds=lambda pairs, fold, folds: (Identity(), [Identity()] * folds),
        fixed=Identity,
        same_size=True,
        instead="",
    ),
    "procrustes": Method(
        text="rotation, scale and shift",
        fit_folds=closed_form(linear.procrustes_folds),
    ),
    "ridge": Method(
        text="a linear map with ridge regularisation, chosen by cross-validation",
        fit_folds=closed_form(linear.ridge),
    ),
    "local": Method(
        text="a rotation with scale for each cell of the old space, blended (after LA2M, 2026)",
        fit=fits.fit_cells,
        quick=True,
        fewest=lambda do, dn: 2 * fits.PAIRS_PER_DIM * do,  # two cells
    ),
    "common": Method(
        text="the forward map of a λ-orthogonal common space (NeurIPS 2025), trained",
        fit=fits.fit_common_space,
        fewest=lambda do, dn: 100,
        instead="ridge",
        auto=False,
    ),
    "common_relaxed": Method(
        text="the same of a nearly orthogonal space, for data that the models have not seen",
        fit=fits.fit_relaxed_space,
        fewest=lambda do, dn: 100,
        instead="ridge",
        auto=False,
    ),
    "converter": Method(
        text="Embedding-Converter's MLP with relational losses (ACL 2025)",
        fit=fits.fit_converter,
        fewest=lambda do, dn: 500,
        instead="ridge",
        auto=False,
    ),
    "fct": Method(
        text="the network of FCT (CVPR 2022)",
        fit=fits.fit_fct,
        instead="ridge",
    ),
    "fastfill": Method(
        text="the network of FastFill (ICLR 2023), with an uncertainty of its own",
        fit=fits.fit_fastfill,
        own_uncertainty=True,
        instead="ridge",
    ),
    "unpaired": Method(
        text="a rotation with scale and shift, found without any pairs (mini-vec2vec, 2025)",
        fit_unpaired=fits.fit_without_pairs,
        instead="",
        auto=False,
    ),
    "lce": Method(
        text="the residual network that an LCE training leaves (ICCV 2021)",
        instead="",
        auto=False,
    ),
}


def find_method(name) -> tuple[str, Method]:
    """Return name and method for a name, "module:NAME", a Method, a Function or a Python function.

    A Python function from old vectors (n, do) to new ones (n, dn) becomes a method without anything
    to fit. Raises UserError for an unknown name.
    """
    found = find(METHODS, name, "method", "maps") if isinstance(name, str) else name
    if isinstance(found, Method):
        return (name if isinstance(name, str) else "own"), found
    if not callable(found):
        raise UserError(
            f"{name} must be a method or a function, but it is of type {type(found).__name__}"
        )
    if not isinstance(name, str):
        name = f"{found.__module__}:{found.__qualname__}"

    def fixed() -> Function:
        return found if isinstance(found, Function) else Called(name, found)

    def fit_folds(pairs: Pairs, fold: np.ndarray, folds: int):
        function = fixed()
        if isinstance(function, Called):
            function.tried(pairs.old.dim)
        return function, [function] * folds

    return name, Method(text="a function of your own", fit_folds=fit_folds, fixed=fixed, instead="")


def fit_method(name: str, method: Method, pairs: Pairs, uncertainty: bool = True) -> Map:
    """Fit a method on all pairs and return the map, with its uncertainty unless it is unwanted.

    The uncertainty is learnt from errors on pairs that the function was not fitted on: the pairs of
    each fold with the function of the other folds, or a tenth of the pairs that is held back. A
    function may also have an uncertainty of its own.
    """
    rng = np.random.default_rng(pairs.seed)
    if method.fit_folds is not None:
        folds = min(3 if max(pairs.old.dim, pairs.new.dim) > _LARGE else 5, len(pairs))
        fold = rng.permutation(len(pairs)) % folds
        function, others = method.fit_folds(pairs, fold, folds)
        rows = np.sort(rng.permutation(len(pairs))[:SAMPLE])
        judged = [(rows[fold[rows] == f], other) for f, other in enumerate(others)]
    else:
        kept = 0 if method.own_uncertainty else max(5, len(pairs) // 10)
        order = np.random.default_rng(pairs.seed + 2).permutation(len(pairs))
        function = tried = method.fit(pairs.of(np.sort(order[kept:])))
        judged = [(np.sort(order[:kept]), tried)]
        if method.quick:
            function = method.fit(pairs)
    if isinstance(function, Linear):
        function = function.single()
    unit = are_unit(pairs.new.vectors) and method.fixed is None
    regressor = {}
    if uncertainty and not function.has_uncertainty:
        regressor = fit_regressor(*_errors(pairs, judged, unit), pairs.seed)
    described = {
        "method": name,
        "dim_in": pairs.old.dim,
        "dim_out": pairs.new.dim,
        "unit_output": unit,
        **function.description,
    }
    return Map(described, function, regressor)


def _errors(pairs: Pairs, judged: list[tuple[np.ndarray, Function]], unit: bool):
    """Return old vectors, lengths of the mapped vectors, and log squared errors."""
    olds, norms, errors = [], [], []
    for rows, function in judged:
        old = np.asarray(pairs.old.vectors[rows], np.float32)
        new = np.asarray(pairs.new.vectors[rows], np.float32)
        # Closed forms are solved in float64.
        mapped, _ = parts_of(function(old.astype(np.float64) if _exact(function) else old))
        if mapped.shape != new.shape:
            raise UserError(f"the map returned shape {mapped.shape}; it must be {new.shape}")
        mapped = mapped.astype(np.float32)
        olds.append(old)
        norms.append(np.linalg.norm(mapped, axis=1))
        errors.append(log_squared_error(unit_rows(mapped) if unit else mapped, new))
    return np.concatenate(olds), np.concatenate(norms), np.concatenate(errors)


def _exact(function: Function) -> bool:
    return isinstance(function, Linear) and np.asarray(function.weight).dtype == np.float64
