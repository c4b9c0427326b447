"""The interface of every store: read by key, guarded writes, search, a sibling and a pointer."""

import abc
import contextlib
import dataclasses
import hashlib
import importlib
import json

import numpy as np

from fct_jax.errors import UserError, unknown
from fct_jax.upgrade.stores.uri import Uri, parse

Position = int | str | None  # the last id done, as a JSON value for the journal
TRANSLATED, NEW = 0, 1  # versions of a row: h(old), or embedded by the new model
VERSION, SEEN = "fct_version", "fct_seen"  # columns of a sibling: version and the source's token
METRICS = ("cosine", "ip", "l2")
BATCH_BYTES = 16 << 20  # bytes of vectors in a batch, below every client's message limit
BATCH_ROWS = 4096


@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows of a store, by ascending id.

    Attributes:
      ids: (n,) int64 or text.
      vectors: (n, D) float32.
      tokens: (n,) int64; a row's token changes whenever the row changes in its store.
      last: position to continue from, which lies after ``ids[-1]`` if rows were skipped.
      extra: the other columns of the rows, in a form that only stores of the same kind understand.
    """

    ids: np.ndarray
    vectors: np.ndarray
    tokens: np.ndarray
    last: Position
    extra: object = None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, keep: np.ndarray) -> "Batch":
        """Return the rows where ``keep`` (n,) is true, with the same ``last``."""
        extra = self.extra
        if isinstance(extra, list):
            extra = [row for row, kept in zip(extra, keep, strict=True) if kept]
        elif extra is not None:
            extra = extra.filter(keep)
        return Batch(self.ids[keep], self.vectors[keep], self.tokens[keep], self.last, extra)


class Store(abc.ABC):
    """N vectors of dimension D under unique ids, in a database that others may write to.

    A store that `sibling` made also keeps, for each row, a version (`TRANSLATED` or `NEW`) and
    the token that the source's row had when it was read. A row without a token belongs to the
    application: it is never overwritten or deleted.

    Attributes:
      uri: the URI for `open_store`, without secrets.
      name: name of the table or collection.
      dim: D.
      metric: the store's metric, "cosine", "ip" or "l2".
      normalises: whether the store scales vectors to unit length, so that lengths are lost.
      id_kind: "int", "uuid" or "text"; ids are int64 for the first and text for the others.
      meta: known facts about the vectors' space (``fingerprint``, ``source``, …).
      in_place: whether it is the second vector of the same rows, beside the old one.
      errors: exceptions that its client raises if a server is unavailable or refuses a request.
    """

    uri: Uri
    name: str
    dim: int
    metric: str
    normalises: bool = False
    id_kind: str
    meta: dict
    in_place: bool = False
    errors: tuple[type[Exception], ...] = (OSError,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.uri)!r})"

    def __len__(self) -> int:
        return self.count()

    @property
    def batch_rows(self) -> int:
        """Return the default number of rows in a batch."""
        return max(1, min(BATCH_ROWS, BATCH_BYTES // (4 * self.dim)))

    @abc.abstractmethod
    def count(self) -> int:
        """Return the exact number of rows that have a vector."""

    @abc.abstractmethod
    def page(self, after: Position, limit: int, vectors: bool = True) -> Batch:
        """Return at most ``limit`` rows with ids above ``after``, ascending.

        An empty batch means that there are no more rows. Without ``vectors`` the batch's vectors
        are (n, 0), and its tokens are those of `states` (0 for none).
        """

    @abc.abstractmethod
    def states(self, ids) -> dict:
        """Return {id: (version or None, token or None)} of the existing ids."""

    def states_in_order(self, ids) -> dict:
        """Return `states` of ascending ids, for which a store may have a faster way."""
        return self.states(ids)

    @abc.abstractmethod
    def fetch(self, ids) -> dict:
        """Return {id: vector (D,)} of the existing ids."""

    @abc.abstractmethod
    def rows_of(self, ids) -> Batch:
        """Return the existing rows of some ids, in any order, in the form that `read` returns."""

    @abc.abstractmethod
    def write(
        self, ids, vectors, version: int, tokens, extra=None, *, over: bool = False
    ) -> np.ndarray:
        """Write rows of a sibling; repeating a write changes nothing.

        Args:
          ids, vectors, tokens, extra: as `read` returns them, with other vectors (n, D).
          version: `TRANSLATED` or `NEW`.
          over: whether translated vectors may also replace the new model's.

        Returns (n,) bool: False if the application has its own row under this id, or, unless
        ``over``, if the new model's vector of the same source row exists and ``version`` is
        older.
        """

    @abc.abstractmethod
    def delete(self, ids) -> None:
        """Delete rows; unknown ids are ignored."""

    @abc.abstractmethod
    def search(self, queries, k: int, *, only: int | None = None, exact: bool = False):
        """Return the k nearest of each query by the store's own index.

        Args:
          queries: (Q, D).
          only: a version; rows of other versions are ignored.
          exact: compare every row in the store, without using its index.

        Returns scores (Q, k) float32, descending, and ids (Q, k). A score is the cosine, the inner
        product or minus half of the squared distance. Missing results have the score −inf and the
        id −1 or "".
        """

    @abc.abstractmethod
    def build_index(self) -> None:
        """Build the vector index after bulk writing; return when it is complete."""

    @abc.abstractmethod
    def sibling(self, dim: int, meta: dict) -> "Store":
        """Return the store of the same rows for another model; make it if it does not exist.

        It is in the same database and has no vector index yet; its name is made from this store's
        name and ``meta["fingerprint"]``. With ``meta["in_place"]`` it is a second vector in the
        same rows, where the database can have one; deleting its rows removes that vector only.
        """

    def sample(self, n: int, seed: int = 0) -> Batch:
        """Return n rows (or all) drawn in the store; equal seeds and rows give equal samples."""
        from fct_jax.upgrade.stores.sampling import sample  # for stores that cannot draw themselves

        return sample(self, n, seed)

    @abc.abstractmethod
    def of_app(self) -> np.ndarray:
        """Return the ids (n,), in any order, of rows that the application wrote to this sibling."""

    @abc.abstractmethod
    def pointer(self):
        """Return the `Pointer` that readers of this store follow."""

    def beside(self, uri: str) -> "Store":
        """Open another store of the same database with the same connection."""
        return type(self)(parse(uri), self.db)

    def close(self) -> None:  # noqa: B027 (many have nothing to give back)
        """Close the connections."""

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def has(self, ids) -> np.ndarray:
        """Return (n,) bool: True for existing ids."""
        found = self.states(ids)
        return np.array([plain(one) in found for one in ids], bool)

    def get(self, ids) -> tuple[np.ndarray, np.ndarray]:
        """Return (n,) bool, True for existing ids, and the vectors of those ids, in order."""
        found = self.fetch(ids) if len(ids) else {}
        keys = [plain(one) for one in ids]
        vectors = np.array([found[one] for one in keys if one in found], np.float32)
        return np.array([one in found for one in keys], bool), vectors.reshape(-1, self.dim)

    def writable(self, ids, version: int, tokens, over: bool = False) -> np.ndarray:
        """Return which rows (n,) `write` may write, for a store without conditional writes."""
        found, allowed = self.states(ids), np.ones(len(ids), bool)
        for place, one in enumerate(ids):
            if plain(one) in found:
                held, seen = found[plain(one)]
                newer = seen == int(tokens[place]) and held > version
                allowed[place] = seen is not None and (over or not newer)
        return allowed

    def read(self, after: Position = None, limit: int | None = None, *, missing_in=None) -> Batch:
        """Return the next rows after ``after`` by ascending id; an empty batch means the end.

        Args:
          missing_in: a sibling; return only rows that it lacks or has in an outdated form.
        """
        limit = limit or self.batch_rows
        while True:
            batch = self.page(after, limit)
            if missing_in is None or not len(batch):
                return batch
            found = missing_in.states_in_order(batch.ids)
            keep = np.array(
                [
                    _is_stale(found.get(plain(one)), token)
                    for one, token in zip(batch.ids, batch.tokens, strict=True)
                ]
            )
            if keep.any():
                return batch.take(keep)
            after = batch.last

    def orphans(self, source: "Store", after: Position = None, limit: int | None = None):
        """Return ids that an upgrade wrote and the source no longer has, and the next position.

        The position is None after the last row.
        """
        while True:
            batch = self.page(after, limit or self.batch_rows, vectors=False)
            if not len(batch):
                return batch.ids, None
            ours = batch.tokens != 0
            gone = np.zeros(len(batch), bool)
            there = source.states_in_order(batch.ids[ours])
            gone[ours] = [plain(one) not in there for one in batch.ids[ours]]
            if gone.any():
                return batch.ids[gone], batch.last
            after = batch.last

    def search_half(
        self, new: "Store", queries_old, queries_new, k: int, affine, *, way="dual", exact=False
    ):
        """Search while only a part of ``new``, this store's sibling, is re-embedded.

        See `fct_jax.upgrade.stores.half.search_half`.
        """
        from fct_jax.upgrade.stores.half import search_half

        return search_half(self, new, queries_old, queries_new, k, affine, way=way, exact=exact)

    def sibling_name(self, meta: dict, name: str | None = None) -> str:
        """Return a name that every database accepts and that is always the same for a model.

        name: old name that it is made from; None: that of the store.
        """
        tag = "".join(c for c in str(meta.get("fingerprint", "new")) if c.isalnum())[:12].lower()
        # PostgreSQL cuts names after 63 bytes.
        return f"{(self.name if name is None else name)[:48]}__{tag or 'new'}"

    def same_dim(self, found: "Store", dim: int) -> "Store":
        """Return a sibling. Raises UserError if it exists with another dimension."""
        if found.dim != dim:
            raise UserError(
                f"{found.uri} already exists, with {found.dim} dimensions instead of {dim}; "
                "delete it, or give the model another fingerprint"
            )
        return found

    def refuse_unknown(self, what: str, known) -> None:
        """Raise UserError if the store's name is not among the known ones."""
        if self.name not in known:
            some = ", ".join(known) or "none"
            raise UserError(f"{self.uri}: no {what} {self.name!r}; known: {some}")

    def bare(self, ids, tokens, last) -> Batch:
        """Return a batch of ids (a list) and tokens without vectors; a missing token is 0."""
        tokens = np.array([token or 0 for token in tokens], np.int64)
        return Batch(self.id_array(ids), np.zeros((len(ids), 0), np.float32), tokens, last)

    def drawn(self, ids) -> Batch:
        """Return the existing rows of a sample's ids."""
        there, vectors = self.get(ids)
        return Batch(ids[there], vectors, np.zeros(there.sum(), np.int64), None)

    def no_ids(self) -> np.ndarray:
        """Return an empty array of ids."""
        return np.zeros(0, np.int64 if self.id_kind == "int" else "U1")

    def id_array(self, ids) -> np.ndarray:
        """Return ids as an array: int64, or text."""
        return np.array(ids, np.int64 if self.id_kind == "int" else np.str_)


@contextlib.contextmanager
def opening(uri: Uri, *errors: type[Exception]):
    """Convert a client's errors, within a context that opens a store, to a one-line UserError."""
    try:
        yield
    except errors as error:
        reason = str(getattr(error, "message", error)).strip().partition("\n")[0]
        raise UserError(f"cannot open {uri}: {reason}") from None


def client(module: str, extra: str):
    """Import a client library. Raises UserError with its installation command if it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise UserError(f"this store needs {module}: pip install 'fct_jax[{extra}]'") from None


def second(vector: str) -> tuple[str, str]:
    """Return the names of version and token that belong to a vector in place."""
    tag = vector.rpartition("__")[2]
    return f"{VERSION}__{tag}", f"{SEEN}__{tag}"


def one_metric(uri: Uri, indexed: list[str], default: str) -> str:
    """Return the metric of a store whose indexes, and not itself, have one.

    Args:
      uri: its ``metric=`` decides between several, and stands if there is no index.
      indexed: metrics of the indexes on the vectors.
      default: metric if there is neither.

    Raises UserError if the URI's metric is unknown or is that of no index, or if several indexes
    differ and the URI does not decide.
    """
    asked = uri.params.get("metric")
    if asked is not None and asked not in METRICS:
        raise unknown("metric", asked, METRICS)
    if indexed and asked is not None and asked not in indexed:
        raise UserError(
            f"{uri}: metric={asked} contradicts the vectors' index, which is for "
            f"{' and '.join(indexed)}"
        )
    if len(indexed) > 1 and asked is None:
        raise UserError(f"{uri} has indexes for {' and '.join(indexed)}; say which by metric=…")
    return asked or (indexed[0] if indexed else default)


def content_tokens(vectors: np.ndarray, rows=None) -> np.ndarray:
    """Return (n,) int64 hashes of rows, never 0, for stores that do not track changes themselves.

    Args:
      vectors: (n, D) float32.
      rows: n dicts of the other columns, or None; these columns are copied too, so a change in them
        counts.
    """
    found = np.empty(len(vectors), np.int64)
    for place, vector in enumerate(np.ascontiguousarray(vectors, np.float32)):
        digest = hashlib.blake2b(vector.tobytes(), digest_size=8)
        if rows is not None:
            digest.update(json.dumps(rows[place], sort_keys=True, default=str).encode())
        # 62 bits, because some databases pass integers through signed or float-like JSON numbers.
        found[place] = (int.from_bytes(digest.digest()) >> 2) or 1
    return found


def ranked(hits, k: int, store: Store) -> tuple[np.ndarray, np.ndarray]:
    """Return search results as arrays; ``hits`` holds an iterable of (score, id) per query."""
    filler = -1 if store.id_kind == "int" else ""
    scores, ids = [], []
    for found in hits:
        found = list(found)[:k] + [(-np.inf, filler)] * k
        scores.append([score for score, _ in found[:k]])
        ids.append([one for _, one in found[:k]])
    return np.array(scores, np.float32).reshape(-1, k), store.id_array(ids).reshape(-1, k)


def plain(one):
    """Return an id as a Python int or str."""
    return one.item() if isinstance(one, np.generic) else one


def _is_stale(state, token) -> bool:
    """Return whether a sibling lacks a row (no state) or has it in an outdated form."""
    return state is None or (state[1] is not None and state[1] != int(token))
