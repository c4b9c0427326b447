"""Writing with pgvector: guarded rows in a side table or a second column, which are made here."""

import zlib
from urllib.parse import urlencode

import numpy as np

from fct_jax.errors import UserError
from fct_jax.storage.ids import listed
from fct_jax.upgrade.stores.base import SEEN, VERSION, plain, second
from fct_jax.upgrade.stores.pgcopy import pack

_LOCK = 5  # seconds that adding a column may wait for other transactions
_TRIGGER = """
create or replace function {name}() returns trigger language plpgsql as $$
begin
  if current_setting('fct_jax.writing', true) is distinct from 'on' then
    new.{seen} := null; new.{ver} := case when new.{v} is null then null else 1 end;
  end if;
  return new;
end $$;
create or replace trigger {name} before insert or update of {v}
on {table} for each row execute function {name}()"""


def _short(name: str) -> str:
    """Return a name within PostgreSQL's 63 bytes, of which no two long names share one."""
    given = name.encode()
    if len(given) <= 63:
        return name
    return f"{given[:54].decode(errors='ignore')}_{zlib.crc32(given):08x}"


class Writing:
    """The part of `PostgresStore` that writes, and makes siblings."""

    def write(self, ids, vectors, version, tokens, extra=None, *, over=False):
        older = "o.{seen} <> excluded.{seen} or o.{ver} < excluded.{ver}"
        names = {
            "stage": self.sql.Identifier(f"fct_stage_{self.dim}_{self.id_type}"),
            "version": self.sql.Literal(int(version)),
        }
        with self.db.transaction():
            self.ask("set local fct_jax.writing = 'on'")
            self.ask(
                f"create temp table if not exists {{stage}} (id {self.id_type}, token bigint, "
                f"vector vector({self.dim})) on commit delete rows",
                **names,
            )
            copied = self.sql.SQL("copy {stage} from stdin (format binary)").format(**names)
            with self.db.cursor() as cursor, cursor.copy(copied) as copy:
                copy.write(pack(ids, tokens, vectors, self.id_type))
            if self.in_place:
                self._update(over, **names)
            else:
                self._insert("o.{seen} is not null" if over else older, **names)
            rows = self.ask(
                "select s.id from {stage} s join {t} o on o.{id} = s.id and o.{seen} = s.token "
                "and o.{ver} = {version}",
                **names,
            )
            done = {self.key(one) for (one,) in rows}
        return np.array([plain(one) in done for one in ids], bool)

    # Rows are written in the order of ids, so that two writers cannot deadlock.

    def _insert(self, where: str, **names) -> None:
        """Insert the staged rows into a side table, or replace the rows that meet a condition."""
        self.ask(
            "insert into {t} as o ({id}, {v}, {ver}, {seen}) select id, vector, {version}, token "
            "from {stage} order by id on conflict ({id}) do update set {v} = excluded.{v}, "
            "{ver} = excluded.{ver}, {seen} = excluded.{seen} where " + where,
            **names,
        )

    def _update(self, over: bool, **names) -> None:
        """Set the second vectors of the staged rows whose old vectors have not changed since."""
        older = "o.{seen} <> s.token or o.{ver} < {version}"
        old = {"old": self.sql.Identifier(self.meta["old"])}
        locked = "select o.{id} from {t} o join {stage} s on s.id = o.{id} order by o.{id}"
        self.ask(locked + " for update of o", **names)
        self.ask(
            "update {t} o set {v} = s.vector, {ver} = {version}, {seen} = s.token from {stage} s "
            f"where o.{{id}} = s.id and {self._hash('o.{old}', self.meta['old'])} = s.token and "
            f"(o.{{v}} is null or (o.{{seen}} is not null and ({'true' if over else older})))",
            **old,
            **names,
        )

    def _hash(self, vector: str, column: str) -> str:
        """Return the token of a row that is written in place: xmin would change with each write."""
        return f"('x' || left(md5({self._kinds[column]}_send({vector})), 16))::bit(64)::bigint"

    def delete(self, ids):
        gone = "update {t} set {v} = null where" if self.in_place else "delete from {t} where"
        self._of(gone, ids)

    def _check_unique(self) -> None:
        """Raise UserError if ids are repeated, as may be without a unique index."""
        unique = self.ask(
            "select 1 from pg_index i join pg_attribute a on a.attrelid = indrelid and "
            "a.attnum = indkey[0] where indrelid = to_regclass(%s) and indisunique and "
            "indnkeyatts = 1 and indpred is null and attname = %s",
            self.names["t"].as_string(self.db),
            self._id_column,
        ).fetchone()
        if unique:
            return
        again = self.ask("select {id} from {t} group by {id} having count(*) > 1 limit 11")
        again = [self.key(one) for (one,) in again]
        if again:
            raise UserError(f"{self.uri}: repeated ids ({listed(again)}); keep one row of each")

    def sibling(self, dim, meta):
        self._check_unique()
        meta = {**meta, "source": str(self.uri)}
        params, place = {**self.uri.params}, str(self.uri).partition("?")[0]
        if meta.get("in_place"):
            params |= {"vector": self.sibling_name(meta, self._vector), "metric": self.metric}
            self._add_column(params["vector"], int(dim), {**meta, "old": self._vector})
            self._token = self._hash("s.{v}", self._vector)
        else:
            params |= {"table": self.sibling_name(meta), "id": "id", "vector": "vector"}
            params["metric"] = self.metric
            self._add_table(params["table"], int(dim), meta)
        uri = f"{place}?{urlencode(params, safe='/:')}"
        return self.same_dim(self.beside(uri), dim)

    def _add_table(self, name: str, dim: int, meta: dict) -> None:
        table = self.sql.Identifier(*name.split("."))
        with self.db.transaction():
            self.ask(
                f"create table if not exists {{table}} (id {self.id_type} primary key, "
                f"vector vector({dim}), {{ver}} smallint default 1, {{seen}} bigint)",
                table=table,
            )
            self._add_trigger(f"fct_jax_{name}", table, "vector")
            self.put_state(f"meta:{name}", meta)

    def _add_column(self, name: str, dim: int, meta: dict) -> None:
        columns = dict(zip(("ver", "seen"), second(name), strict=True))
        columns = {key: self.sql.Identifier(column) for key, column in columns.items()}
        columns |= {"new": self.sql.Identifier(name), "t": self.names["t"]}
        text = (
            f"alter table {{t}} add column if not exists {{new}} vector({dim}), add column if not "
            "exists {ver} smallint, add column if not exists {seen} bigint"
        )
        with self.db.transaction():
            # The lock is short, but behind a long transaction everybody else would wait for it.
            self.ask(f"set local lock_timeout = '{_LOCK}s'")
            self.db.execute(self.sql.SQL(text).format(**columns))
            self._add_trigger(f"fct_jax_{name}_{self.name}", self.names["t"], name)
            self.put_state(f"meta:{self.name}.{name}", meta)

    def _add_trigger(self, name: str, table, vector: str) -> None:
        version, seen = second(vector) if "__" in vector else (VERSION, SEEN)
        named = {"ver": version, "seen": seen, "v": vector, "name": _short(name)}
        named = {key: self.sql.Identifier(value) for key, value in named.items()}
        self.db.execute(self.sql.SQL(_TRIGGER).format(**named, table=table))
