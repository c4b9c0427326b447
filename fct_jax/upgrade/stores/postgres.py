"""PostgreSQL with pgvector: new vectors go to a side table without index.

Changes of the source are detected by ``xmin``, the transaction that wrote a row: every update
changes it, and no trigger or column has to be added to the application's table. A trigger on the
side table marks the rows that the application itself writes there.
"""

import contextlib
import json

import numpy as np

from fct_jax.errors import UserError
from fct_jax.upgrade.stores.base import (
    SEEN,
    VERSION,
    Batch,
    Store,
    client,
    one_metric,
    opening,
    plain,
    second,
)
from fct_jax.upgrade.stores.pgcopy import unpack
from fct_jax.upgrade.stores.pointer import Pointer
from fct_jax.upgrade.stores.postgres_search import METRICS, Searching
from fct_jax.upgrade.stores.postgres_write import Writing
from fct_jax.upgrade.stores.uri import Uri

_OURS = ("table", "id", "vector", "metric")  # parameters that libpq does not have
_LIBPQ = ("host", "port", "sslmode", "sslrootcert", "connect_timeout", "options", "service")
_ID_KINDS = {"int2": "int", "int4": "int", "int8": "int", "uuid": "uuid"}
_ID_KINDS |= dict.fromkeys(("text", "varchar", "bpchar"), "text")
_STATE = "fct_jax"  # our table of metas and pointers


class PostgresStore(Writing, Searching, Store):
    """One table: a unique column of ids and a column of pgvector's ``vector`` or ``halfvec``.

    The metric is the URI's ``metric=``, else that of the column's index, else cosine.
    """

    def __init__(self, uri: Uri, connection=None):
        self._pg = client("psycopg", "pgvector")
        self.sql, self.errors = self._pg.sql, (self._pg.Error,)
        uri.only(*_OURS, *_LIBPQ)
        self.uri, self.name = uri, uri.params.get("table", "")
        if not self.name:
            raise UserError(f"{uri} names no table; add ?table=…&id=…&vector=…")
        columns = {"id": uri.params.get("id", "id"), "v": uri.params.get("vector", "embedding")}
        self.names = {name: self.sql.Identifier(column) for name, column in columns.items()}
        self._id_column, self._vector = columns["id"], columns["v"]
        self.names["t"] = self.sql.Identifier(*self.name.split("."))
        self.db = connection or self._connect()
        try:
            self._describe(columns["id"], columns["v"])
        except BaseException:
            if not connection:
                self.db.close()
            raise

    def _connect(self):
        uri = self.uri
        given = {name: uri.params[name] for name in _LIBPQ if name in uri.params}
        given |= {
            name: getattr(uri, name) for name in ("host", "port", "user") if getattr(uri, name)
        }
        # Statements are not prepared: poolers such as PgBouncer may lose them, and a prepared
        # statement breaks when a column's type changes.
        with opening(uri, self._pg.Error):
            return self._pg.connect(
                dbname=uri.path.strip("/") or None, autocommit=True, prepare_threshold=None, **given
            )

    def ask(self, text: str, *values, **names):
        """Run a statement after filling in {t}, {id}, {v}, {ver}, {seen} and others."""
        return self.db.execute(self.sql.SQL(text).format(**self.names, **names), values or None)

    def _describe(self, id_column: str, vector_column: str) -> None:
        has = self.ask("select extversion from pg_extension where extname = 'vector'").fetchone()
        if has is None or tuple(map(int, has[0].split(".")[:2])) < (0, 8):
            raise UserError(f"{self.uri}: pgvector 0.8 is needed; found {has and has[0]}")
        found = dict(
            self.ask(
                "select attname, (typname, atttypmod) from pg_attribute a join pg_type t "
                "on t.oid = atttypid where attrelid = to_regclass(%s) and attnum > 0",
                self.names["t"].as_string(self.db),
            ).fetchall()
        )
        for name in (id_column, vector_column):
            if name not in found:
                known = ", ".join(found) or "no such table"
                raise UserError(f"{self.uri}: no column {name!r} in {self.name!r} ({known})")
        self.id_type, (kind, dim) = found[id_column][0], found[vector_column]
        if kind not in ("vector", "halfvec"):
            raise UserError(f"{self.uri}: column {vector_column!r} is {kind}, not vector")
        if self.id_type not in _ID_KINDS:
            known = ", ".join(_ID_KINDS)
            raise UserError(f"{self.uri}: ids of type {self.id_type} are not known ({known})")
        self.id_kind, self.half = _ID_KINDS[self.id_type], kind == "halfvec"
        own = second(vector_column)
        self.in_place = set(own) <= set(found)
        version, seen = own if self.in_place else (VERSION, SEEN)
        self.names |= {"ver": self.sql.Identifier(version), "seen": self.sql.Identifier(seen)}
        self.dim, self._is_sibling = int(dim), seen in found
        self._kinds = {name: kind for name, (kind, _) in found.items()}
        # Writes in place change xmin, too.
        shared = any(name.startswith(f"{SEEN}__") for name in found)
        self._token = self._hash("s.{v}", vector_column) if shared else "s.xmin::text::bigint"
        if self.dim < 1:  # declared without a dimension
            row = self.ask("select vector_dims({v}) from {t} where {v} is not null limit 1")
            self.dim = (row.fetchone() or [0])[0]
        self.metric = one_metric(self.uri, self._indexed_metrics(vector_column), "cosine")
        self._meta_key = f"meta:{self.name}{'.' + vector_column if self.in_place else ''}"
        self.meta = self.state(self._meta_key) or {}

    def _indexed_metrics(self, column: str) -> list[str]:
        """Return the metrics of the indexes on a column of this very table."""
        # An index depends on the columns that its expressions use; their numbers in its key are 0.
        rows = self.ask(
            "select opcname from pg_attribute a join pg_depend d on d.refobjid = attrelid and "
            "refobjsubid = attnum join pg_index i on indexrelid = d.objid and (attnum = any(indkey)"
            " or 0 = any(indkey)) join pg_opclass o on o.oid = any(indclass) where "
            "attrelid = to_regclass(%s) and attname = %s and refclassid = 'pg_class'::regclass "
            "and d.classid = 'pg_class'::regclass",
            self.names["t"].as_string(self.db),
            column,
        ).fetchall()
        found = {name.partition("_")[2] for (name,) in rows}  # vector_l2_ops, halfvec_l2_ops
        return [metric for metric, row in METRICS.items() if row[1] in found]

    def state(self, key: str):
        """Return the value of a key in our own table, or None."""
        if self.ask("select to_regclass(%s)", _STATE).fetchone()[0] is None:
            return None
        row = self.ask(f"select value from {_STATE} where key = %s", key).fetchone()
        return row and row[0]

    def put_state(self, key: str, value: dict, expect: int = 0) -> bool:
        """Insert a value, or replace that of generation ``expect``; return whether it worked."""
        # If two processes create the table at once, one fails in spite of IF NOT EXISTS, at one of
        # three places; the table then exists.
        errors = self._pg.errors
        there = errors.UniqueViolation, errors.DuplicateObject, errors.DuplicateTable
        with contextlib.suppress(*there), self.db.transaction():
            self.ask(f"create table if not exists {_STATE} (key text primary key, value jsonb)")
        text = f"insert into {_STATE} (value, key) values (%s, %s) on conflict do nothing"
        values = [json.dumps(value), key]
        if expect:
            text = f"update {_STATE} set value = %s where key = %s and value->'generation' = %s"
            values.append(json.dumps(expect))
        return self.ask(text, *values).rowcount == 1

    def key(self, one):
        """Return an id in the form that this store's arrays have."""
        return one if self.id_kind == "int" else str(one)

    def count(self):
        return self.ask("select count(*) from {t} where {v} is not null").fetchone()[0]

    def page(self, after, limit, vectors=True, *, join="", where="true", **names):
        seen = "s.{seen}" if self._is_sibling else "null::bigint"
        token, vector = (self._token, "s.{v}") if vectors else (seen, "null")
        text = (
            f"copy (select s.{{id}}, {token}, {vector} from {{t}} s {join} where s.{{v}} is not "
            f"null and {where} {'' if after is None else 'and s.{id} > {after}'} "
            "order by s.{id} limit {limit}) to stdout (format binary)"
        )
        names |= {"after": self.sql.Literal(after), "limit": self.sql.Literal(limit)}
        statement = self.sql.SQL(text).format(**self.names, **names)
        with self.db.cursor() as cursor, cursor.copy(statement) as copy:
            data = b"".join(copy)
        ids, tokens, rows = unpack(data, self.id_kind, self.half, self.dim if vectors else None)
        tokens = np.array([token or 0 for token in tokens], np.int64)
        rows = rows.reshape(len(ids), self.dim if vectors else 0)
        return Batch(self.id_array(ids), rows, tokens, ids[-1] if ids else after)

    def rows_of(self, ids):
        some = self.sql.SQL("s.{id} = any({ids}::{kind}[])").format(
            **self.names,
            ids=self.sql.Literal([plain(one) for one in ids]),
            kind=self.sql.SQL(self.id_type),
        )
        return self.page(None, max(len(ids), 1), where="{some}", some=some)

    def read(self, after=None, limit=None, *, missing_in=None):
        if not self.shares_server(missing_in):
            return super().read(after, limit, missing_in=missing_in)
        columns = {"other": "t", "key": "id", "new": "v", "had": "seen"}
        other = {name: missing_in.names[column] for name, column in columns.items()}
        join = "left join {other} o on o.{key} = s.{id} and o.{new} is not null"
        where = f"(o.{{key}} is null or o.{{had}} <> {self._token})"
        return self.page(after, limit or self.batch_rows, join=join, where=where, **other)

    def shares_server(self, other) -> bool:
        """Return whether another store's table can be joined in one statement."""
        return isinstance(other, PostgresStore) and other.db is self.db

    def _of(self, text: str, ids):
        """Run a statement about rows of some ids."""
        some = f"{{id}} = any(%s::{self.id_type}[])"
        return self.ask(f"{text} {{v}} is not null and {some}", [plain(one) for one in ids])

    def states(self, ids):
        columns = "{ver}, {seen}" if self._is_sibling else "null, null"
        rows = self._of(f"select {{id}}, {columns} from {{t}} where", ids)
        return {self.key(one): (version, token) for one, version, token in rows}

    def fetch(self, ids):
        rows = self._of("select {id}, {v}::real[] from {t} where", ids)
        unknown = [np.nan] * self.dim  # for vectors of another dimension in an undeclared column
        return {self.key(one): row if len(row) == self.dim else unknown for one, row in rows}

    def sample(self, n, seed=0):
        table = self.names["t"].as_string(self.db)
        guess = self.ask("select reltuples from pg_class where oid = to_regclass(%s)", table)
        rows = guess.fetchone()[0]
        # Some of the table's blocks are read, with about four times as many rows as requested; all
        # blocks of a table that is small or was never analysed are read. If too many rows lack a
        # vector, more blocks are.
        share = 100.0 if rows < 20 * n else 400.0 * n / rows
        while True:
            drawn = self.ask(
                f"select {{id}} from {{t}} tablesample system ({share:f}) repeatable ({int(seed)}) "
                f"where {{v}} is not null order by md5({{id}}::text || '{int(seed)}') "
                f"limit {int(n)}"
            ).fetchall()
            if len(drawn) == n or share >= 100:
                break
            share = min(100.0, 8 * share)
        return self.drawn(self.id_array(sorted(self.key(one) for (one,) in drawn)))

    def of_app(self):
        rows = self.ask("select {id} from {t} where {v} is not null and {seen} is null").fetchall()
        return self.id_array([self.key(one) for (one,) in rows])

    def pointer(self):
        return _Pointer(self)

    def close(self):
        self.db.close()


class _Pointer(Pointer):
    """A pointer in a row of a small table; an update names the generation that it expects."""

    def load(self):
        return self.first.state(f"pointer:{self.first.name}")

    def swap(self, value, expect):
        return self.first.put_state(f"pointer:{self.first.name}", value, expect)
