"""LanceDB tables; the sibling is in the same folder or bucket, with all columns copied.

Changes of a row are detected by a hash of its vector and its other columns. Lance does not order
ids, so `lance_order` does; nor does it require unique ids, so repeated ones are rejected.
"""

import contextlib
import datetime
import json
import time
from pathlib import Path
from urllib.parse import urlencode

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
from fct_jax.upgrade.stores.uri import Uri, parse

_TIMEOUT = datetime.timedelta(seconds=120)  # for a merge; 30 s is too short with other writers
_TRIES = 5
_FEWEST_INDEXED = 4096  # fewer rows are searched as quickly without an index
_OURS = {"cosine": "cosine", "dot": "ip", "l2": "l2"}
_LANCE = {ours: theirs for theirs, ours in _OURS.items()}


class LanceStore(Store):
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
        indexed = [ours for theirs, ours in _OURS.items() if theirs in kinds]
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
        ids = self.id_array(rows[self.id_column].to_pylist())
        tokens = np.zeros(len(ids), np.int64)
        if self.is_sibling and len(ids):
            tokens = rows[self._own[1]].fill_null(0).to_numpy()
        last = plain(ids[-1]) if len(ids) else after
        return Batch(ids, np.zeros((len(ids), 0), np.float32), tokens, last)

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

    def write(self, ids, vectors, version, tokens, extra=None, *, over=False):
        pa, schema = self._pa, self.table.schema
        new = {
            self.id_column: pa.array([plain(one) for one in ids]),
            self._vector: pa.FixedSizeListArray.from_arrays(
                pa.array(np.asarray(vectors, np.float32).ravel()), self.dim
            ),
            self._own[0]: pa.array([int(version)] * len(ids)),
            self._own[1]: pa.array(np.asarray(tokens, np.int64)),
        }
        if self.in_place:
            schema = pa.schema([schema.field(name) for name in new])
        columns = [
            new[field.name].cast(field.type)
            if field.name in new
            else pa.nulls(len(ids), field.type)
            if extra is None
            else extra[field.name]
            for field in schema
        ]
        rows = pa.table(columns, schema=schema)
        if not self.in_place and self._lies_behind(ids[0]):
            result = self._tried(lambda: self.table.add(rows))
            done = np.ones(len(ids), bool)
        else:
            ver, seen = self._own
            older = f"target.{seen} <> source.{seen} or target.{ver} < source.{ver}"
            some = f"target.{seen} is not null" if over else older
            if self.in_place:  # rows without a second vector are there, too
                some = f"target.{self._vector} is null or (target.{seen} is not null and ({some}))"
            merge = self.table.merge_insert(self.id_column).when_matched_update_all(where=some)
            if self.in_place:
                self._tried(lambda: merge.execute(rows, timeout=_TIMEOUT))
                return self._done(ids, version, tokens)
            merge = merge.when_not_matched_insert_all()
            result = self._tried(lambda: merge.execute(rows, timeout=_TIMEOUT))
            done = self._done(ids, version, tokens)
        self._highest, self._known_version = max(self._highest, plain(ids[-1])), result.version
        return done

    def _done(self, ids, version, tokens) -> np.ndarray:
        states = self.states(ids)
        pairs = zip(ids, tokens, strict=True)
        return np.array([states.get(plain(one)) == (version, int(t)) for one, t in pairs], bool)

    def _lies_behind(self, first) -> bool:
        """Return whether all ids of the table are lower, so that appending is safe and much faster.

        The highest id is known only while no other writer has written since our last write.
        """
        self.table.checkout_latest()
        if self._known_version != self.table.version:
            self._highest = None
            for batch in self.table.search().select([self.id_column]).to_batches():
                found = self._pa.compute.max(batch[self.id_column]).as_py()
                self._highest = max(found, self._highest or found)
            if self._highest is None:
                self._highest = plain(first)
                return True
        return plain(first) > self._highest

    def _tried(self, action):
        """Run an action that conflicts with other writers; retry it if necessary."""
        for left in reversed(range(_TRIES)):
            try:
                return action()
            except (RuntimeError, OSError) as error:
                conflict = any(word in str(error).lower() for word in ("conflict", "concurrent"))
                if not left or not conflict:
                    raise UserError(f"{self.uri}: {str(error).partition(chr(10))[0]}") from None
                time.sleep(2 ** (_TRIES - left) / 10)
                self.table.checkout_latest()

    def delete(self, ids):
        some = f"{self.id_column} in ({','.join(map(self.literal, ids))})"
        if self.in_place:
            none = dict.fromkeys([self._vector, *self._own])
            self._tried(lambda: self.table.update(some, none))
        else:
            self._tried(lambda: self.table.delete(some))

    def search(self, queries, k, *, only=None, exact=False):
        hits, table = [], self.latest()
        for query in np.asarray(queries, np.float32):
            asked = table.search(query, vector_column_name=self._vector)
            # Unless the distance is selected by name, every search logs a warning.
            named = [self.id_column, "_distance"]
            asked = asked.distance_type(_LANCE[self.metric]).limit(k).select(named)
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

    def build_index(self):
        """Merge the small files that bulk writing left, and build indexes of ids and vectors."""
        self.table.checkout_latest()
        self._tried(self.table.optimize)
        if self.table.count_rows() >= _FEWEST_INDEXED:
            self._tried(lambda: self.table.create_scalar_index(self.id_column))
            self._tried(
                lambda: self.table.create_index(
                    metric=_LANCE[self.metric],
                    vector_column_name=self._vector,
                    index_type="IVF_HNSW_SQ",
                )
            )

    def sibling(self, dim, meta):
        pa, name = self._pa, self.sibling_name(meta)
        if meta.get("in_place"):
            return self._second(int(dim), meta)
        names = self._not_copied(self.table.schema.names)
        kept = [f for f in self.table.schema if f.name not in names]
        # These columns are nullable, because the application's own inserts lack them.
        added = [
            pa.field(self._vector, pa.list_(pa.float32(), int(dim))),
            pa.field(VERSION, pa.int8()),
            pa.field(SEEN, pa.int64()),
        ]
        meta = {**meta, "source": str(self.uri), "metric": self.metric}
        schema = pa.schema([*kept, *added], metadata={"fct_jax": json.dumps(meta)})
        with contextlib.suppress(ValueError):  # it already exists
            self.db.create_table(name, schema=schema)
        uri = parse(self.uri.with_name(name))
        return self.same_dim(LanceStore(uri, self.db), dim)

    def _second(self, dim: int, meta: dict):
        """Return the sibling in place, whose columns are added if they do not exist."""
        pa, name = self._pa, self.sibling_name(meta, self._vector)
        meta = {**meta, "source": str(self.uri), "metric": self.metric}
        version, seen = second(name)
        self.table.checkout_latest()
        if seen not in self.table.schema.names:
            described = {"fct_jax": json.dumps(meta)}
            added = [
                pa.field(name, pa.list_(pa.float32(), dim), metadata=described),
                pa.field(version, pa.int8()),
                pa.field(seen, pa.int64()),
            ]
            self._tried(lambda: self.table.add_columns(added))
        place, _, table = str(self.uri).partition("#")
        params = {"id": self.id_column, "metric": self.metric, "vector": name}
        uri = parse(f"{place.partition('?')[0]}?{urlencode(params)}#{table}")
        return self.same_dim(LanceStore(uri, self.db), dim)

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
