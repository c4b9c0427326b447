"""Writing with LanceDB: guarded rows in a sibling or in second columns, which are made here."""

import contextlib
import datetime
import json
import time
from urllib.parse import urlencode

import numpy as np

from fct_jax.errors import UserError
from fct_jax.upgrade.stores.base import SEEN, VERSION, plain, second

# the database's names of metrics, and ours
OURS = {"cosine": "cosine", "dot": "ip", "l2": "l2"}
LANCE = {ours: theirs for theirs, ours in OURS.items()}
_TIMEOUT = datetime.timedelta(seconds=120)  # for a merge; 30 s is too short with other writers
_TRIES = 5
_FEWEST_INDEXED = 4096  # fewer rows are searched as quickly without an index


class Writing:
    """The part of `LanceStore` that writes, and makes siblings."""

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

    def build_index(self):
        """Merge the small files that bulk writing left, and build indexes of ids and vectors."""
        self.table.checkout_latest()
        self._tried(self.table.optimize)
        if self.table.count_rows() >= _FEWEST_INDEXED:
            self._tried(lambda: self.table.create_scalar_index(self.id_column))
            self._tried(
                lambda: self.table.create_index(
                    metric=LANCE[self.metric],
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
        uri = self.uri.with_name(name)
        return self.same_dim(self.beside(uri), dim)

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
        uri = f"{place.partition('?')[0]}?{urlencode(params)}#{table}"
        return self.same_dim(self.beside(uri), dim)
