"""LanceDB tables; the sibling is in the same folder or bucket, with all columns copied.

Changes of a row are detected by a hash of its vector and its other columns. Lance does not order
ids, so `lance_order` does; nor does it require unique ids, so repeated ones are rejected.
"""

import json
from pathlib import Path

import numpy as np

from fct_jax.errors import UserError
from fct_jax.upgrade.stores.base import (
    SEEN,
    VERSION,
    Batch,
    Store,
    client,
    content_tokens,
    one_metric,
    plain,
    ranked,
    second,
)
from fct_jax.upgrade.stores.lance_pointer import LancePointer
from fct_jax.upgrade.stores.lance_write import LANCE, OURS, Writing
from fct_jax.upgrade.stores.uri import Uri


class LanceStore(Writing, Store):
    """A table with a column of ids (``?id=``) and a fixed-size list of floats (``?vector=``).

    The metric is the URI's ``metric=``, else that of the column's index, else cosine. A sibling
    without an index has its source's metric.
    """

    errors = (RuntimeError, OSError)

    def __init__(self, uri: Uri, connection=None):
        uri.only("id", "vector", "metric")
        lancedb, self._pa = client("lancedb", "lance"), client("pyarrow", "lance")
        if not uri.name:
            raise UserError(f"{uri} names no table; write lancedb:///folder#table")
        self.uri, self.name = uri, uri.name
        self.id_column = uri.params.get("id", "id")
        self._vector = uri.params.get("vector", "vector")
        place = f"s3://{uri.host}{uri.path}" if uri.scheme == "s3" else uri.path
        if uri.scheme != "s3" and not Path(place).is_dir():
            raise UserError(f"{uri}: there is no folder {place}")
        try:
            self.db = connection or lancedb.connect(place)
            self.table = self.db.open_table(self.name)
        except (ValueError, OSError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            if "not found" in reason:
                known = ", ".join(self.db.list_tables(limit=50).tables)
                reason = f"no table {self.name!r}; known: {known or 'none'}"
            raise UserError(f"cannot open {uri}: {reason}") from None
        self._describe()
        from fct_jax.upgrade.stores.lance_order import Ordered

        self._ordered = Ordered(self, self.id_column, [self.id_column], row_ids=True)
        columns = [self.id_column, *(self._own if self.is_sibling else [])]
        some = f"{self._vector} is not null" if self.in_place else None
        self._ordered_states = Ordered(self, self.id_column, columns, where=some)
        self._known_version = self._highest = None

    def _describe(self) -> None:
        schema, types = self.table.schema, self._pa.types
        for name in (self.id_column, self._vector):
            if name not in schema.names:
                known = ", ".join(schema.names)
                raise UserError(f"{self.uri}: no column {name!r}; known: {known}")
        id_type, kind = schema.field(self.id_column).type, schema.field(self._vector).type
        if not (types.is_fixed_size_list(kind) and types.is_floating(kind.value_type)):
            raise UserError(f"{self.uri}: {self._vector!r} is {kind}, not a list of D floats")
        if not (types.is_integer(id_type) or types.is_string(id_type)):
            raise UserError(f"{self.uri}: ids are {id_type}; integers and text are supported")
        self.dim, self.id_kind = kind.list_size, "int" if types.is_integer(id_type) else "text"
        own = second(self._vector)
        self.in_place = set(own) <= set(schema.names)
        self._own = list(own if self.in_place else (VERSION, SEEN))
        self.is_sibling = self._own[1] in schema.names
        described = schema.field(self._vector) if self.in_place else schema
        self.meta = json.loads((described.metadata or {}).get(b"fct_jax", b"{}"))
        indices = [index for index in self.table.list_indices() if self._vector in index.columns]
        kinds = [self.table.index_stats(index.name).distance_type for index in indices]
        indexed = [ours for theirs, ours in OURS.items() if theirs in kinds]
        self.metric = one_metric(self.uri, indexed, self.meta.get("metric", "cosine"))

    def latest(self):
        """Return the table's newest version, as a snapshot that other calls do not change."""
        table = self.db.open_table(self.name)
        table.checkout(table.version)
        return table

    def literal(self, one) -> str:
        """Return an id in the syntax of a condition."""
        return str(int(one)) if self.id_kind == "int" else "'" + str(one).replace("'", "''") + "'"

    def count(self):
        return self.latest().count_rows(f"{self._vector} is not null")

    def page(self, after, limit, vectors=True):
        if not vectors:
            return self._states_page(after, limit)
        while True:
            rows = self._ordered.after(after, limit)
            if not len(rows):
                none = np.zeros((0, self.dim), np.float32)
                return Batch(self.no_ids(), none, np.zeros(0, np.int64), after)
            after = rows[self.id_column][-1].as_py()
            found = self._ordered.table.take_row_ids(rows["_rowid"].to_pylist()).to_arrow()
            found = found.filter(found[self._vector].is_valid())
            if len(found):  # some rows have a vector
                break
        return self._batch(found.sort_by(self.id_column), after)

    def rows_of(self, ids):
        found = self._of(ids, None)
        found = found.filter(found[self._vector].is_valid())
        return self._batch(found.sort_by(self.id_column), None)  # in the form for `write`

    def _batch(self, found, after) -> Batch:
        extra = found.drop_columns(self._not_copied(found.column_names))
        values = self._values(found)
        tokens = content_tokens(values, extra.to_pylist())
        return Batch(self.id_array(found[self.id_column].to_pylist()), values, tokens, after, extra)

    def _states_page(self, after, limit):
        rows = self._ordered_states.after(after, limit)
        ids, seen = rows[self.id_column].to_pylist(), self._own[1]
        tokens = rows[seen].to_pylist() if self.is_sibling and ids else [0] * len(ids)
        return self.bare(ids, tokens, ids[-1] if ids else after)

    def _values(self, rows) -> np.ndarray:
        flat = rows[self._vector].combine_chunks().flatten()
        return flat.to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, self.dim)

    def _of(self, ids, columns):
        """Return the rows of some ids, unordered; if ``columns`` is None, with all columns."""
        some = ",".join(map(self.literal, ids)) or "null"
        some = f"{self.id_column} in ({some})"
        query = (
            self.latest()
            .search()
            .where(f"{some} and {self._vector} is not null" if self.in_place else some)
        )
        return (query if columns is None else query.select(columns)).to_arrow()

    def states(self, ids):
        columns = self._own if self.is_sibling else []
        return self._as_states(self._of(ids, [self.id_column, *columns]))

    def states_in_order(self, ids):
        if not len(ids):
            return {}
        return self._as_states(self._ordered_states.between(plain(ids[0]), plain(ids[-1])))

    def _as_states(self, rows) -> dict:
        columns = rows.to_pydict()
        none = [None] * len(rows)
        pairs = zip(*(columns.get(name, none) for name in self._own), strict=True)
        return dict(zip(columns[self.id_column], pairs, strict=True))

    def fetch(self, ids):
        rows = self._of(ids, [self.id_column, self._vector])
        rows = rows.filter(rows[self._vector].is_valid())
        return dict(zip(rows[self.id_column].to_pylist(), self._values(rows), strict=True))

    def search(self, queries, k, *, only=None, exact=False):
        hits, table = [], self.latest()
        for query in np.asarray(queries, np.float32):
            asked = table.search(query, vector_column_name=self._vector)
            # Unless the distance is selected by name, every search logs a warning.
            named = [self.id_column, "_distance"]
            asked = asked.distance_type(LANCE[self.metric]).limit(k).select(named)
            if exact:
                asked = asked.bypass_vector_index()
            if only is not None:
                asked = asked.where(f"{self._own[0]} = {int(only)}", prefilter=True)
            elif self.in_place:
                asked = asked.where(f"{self._vector} is not null", prefilter=True)
            rows = asked.to_arrow()
            scores = self._scores(rows["_distance"].to_numpy())
            hits.append(zip(scores.tolist(), rows[self.id_column].to_pylist(), strict=True))
        return ranked(hits, k, self)

    def _scores(self, distance: np.ndarray) -> np.ndarray:
        return -distance / 2 if self.metric == "l2" else 1 - distance

    def _not_copied(self, names) -> list[str]:
        """Return the columns of vectors, versions and tokens among names, also those in place."""
        tags = [name.removeprefix(SEEN) for name in names if name.startswith(f"{SEEN}__")]
        mine = (VERSION, SEEN, self._vector)
        return [n for n in names if n in mine or n.endswith(tuple(tags) or ("\0",))]

    def sample(self, n, seed=0):
        table, rng = self.latest(), np.random.default_rng(seed)
        total = table.count_rows()
        rows = np.sort(rng.choice(total, min(n, total), replace=False))
        found = self._with_vectors(table.take_offsets(rows.tolist()))
        if len(found) < n < total:  # rows without a vector were drawn
            found = self._with_vectors(table.take_row_ids(self._drawn(table, n, rng)))
        found = found.sort_by(self.id_column)
        ids = self.id_array(found[self.id_column].to_pylist())
        return Batch(ids, self._values(found), np.zeros(len(ids), np.int64), None)

    def _with_vectors(self, taken):
        found = taken.select([self.id_column, self._vector]).to_arrow()
        return found.filter(found[self._vector].is_valid())

    def _drawn(self, table, n: int, rng) -> list[int]:
        """Draw n of the rows that have a vector, in one pass with n in memory."""
        query = table.search().where(f"{self._vector} is not null").select([self.id_column])
        rows, keys = np.zeros(0, np.uint64), np.zeros(0)
        for batch in query.with_row_id(True).to_batches():
            rows = np.concatenate([rows, batch["_rowid"].to_numpy()])
            keys = np.concatenate([keys, rng.random(len(batch))])
            least = np.argsort(keys)[:n]
            rows, keys = rows[least], keys[least]
        return rows.tolist()

    def of_app(self):
        some = f"{self._own[1]} is null and {self._vector} is not null"
        query = self.latest().search().where(some).select([self.id_column])
        return self.id_array(query.to_arrow()[self.id_column].to_pylist())

    def pointer(self):
        return LancePointer(self)
