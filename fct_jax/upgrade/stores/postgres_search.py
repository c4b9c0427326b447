"""Search in pgvector: the index, nearest rows, and a half-migrated gallery in one statement."""

import contextlib

import numpy as np

from fct_jax.upgrade.stores.base import NEW, ranked
from fct_jax.upgrade.stores.half import check_way, depth_of

# metric -> operator, operator class, expression for the score of a distance
METRICS = {
    "cosine": ("<=>", "cosine_ops", "1 - ({})"),
    "ip": ("<#>", "ip_ops", "-({})"),
    "l2": ("<->", "l2_ops", "-(({})^2)/2"),
}
_INDEXED = 2000  # most dimensions of a vector that HNSW indexes
_INDEXED_HALF = 4000  # most dimensions of a halfvec

# The old table gives rows that are not re-embedded, the side table those that are re-embedded.
_DUAL = """
with old as materialized ({old}), new as materialized ({new})
select id, score * %s + %s as total from old union all
select id, score * %s + %s from new order by total desc, id limit {k}"""

# The candidates of both spaces are scored again with both of their vectors.
_FUSED = """
with old as materialized ({old}), done as materialized ({done}), new as materialized ({new})
select id, score * %s + %s as total from old union all
select c.id, ({of_old}) * %s + ({of_new}) * %s + %s
from (select id from done union select id from new) c
join {t} s on s.{id} = c.id join {other} o on o.{key} = c.id and o.{over} = 1
order by total desc, id limit {k}"""


class Searching:
    """The part of `PostgresStore` that searches."""

    @property
    def _type(self) -> str:
        """Return the type to compare: over 2,000 dimensions HNSW indexes only halfvec."""
        return f"{'halfvec' if self.half or self.dim > _INDEXED else 'vector'}({self.dim})"

    def build_index(self):
        """Build an HNSW index, unless the vectors have more than 4,000 dimensions."""
        if self.dim > _INDEXED_HALF:
            return
        kind, name = self._type.partition("(")[0], self.name.split(".")[-1]
        name = self._vector if self.in_place else name
        column = "{v}" if kind == ("halfvec" if self.half else "vector") else f"({self._column})"
        self.ask(
            f"create index if not exists {{index}} on {{t}} using hnsw "
            f"({column} {kind}_{METRICS[self.metric][1]})",
            index=self.sql.Identifier(f"{name[:58]}_hnsw"),
        )
        self.ask("analyze {t}")

    @property
    def _column(self) -> str:
        wide = not self.half and self.dim > _INDEXED
        return f"{{v}}::{self._type}" if wide else "{v}"

    def distance(self, table: str) -> str:
        """Return the distance of a table's rows to a parameter, written as in the index."""
        column = self._column.replace("{v}", f"{table}.{{v}}")
        return f"({column}) {METRICS[self.metric][0]} %s::{self._type}"

    def score(self, table: str):
        """Return the score of a table's rows for a parameter."""
        text = METRICS[self.metric][2].format(self.distance(table))
        return self.sql.SQL(text).format(**self.names)

    def nearest(self, k: int, where: str = "true", **names):
        """Return the statement for a query's k nearest rows; both parameters are the query."""
        text = (
            f"select s.{{id}} as id, {METRICS[self.metric][2].format(self.distance('s'))} as score "
            f"from {{t}} s where s.{{v}} is not null and {where} "
            f"order by {self.distance('s')} limit {int(k)}"
        )
        return self.sql.SQL(text).format(**self.names, **names)

    @contextlib.contextmanager
    def searching(self, k: int, exact: bool = False):
        """Yield a function that runs a statement with the settings for `nearest`."""
        with self.db.transaction():
            if exact:
                self.ask("set local enable_indexscan = off")
            # The index scan continues, so that rows dropped by a condition do not shorten the list.
            self.ask("set local hnsw.iterative_scan = 'strict_order'")
            self.ask(f"set local hnsw.ef_search = {min(1000, max(100, 2 * k))}")
            yield lambda text, *values: self.db.execute(text, values)

    def search(self, queries, k, *, only=None, exact=False):
        text = self.nearest(k, "true" if only is None else f"s.{{ver}} = {int(only)}")
        hits = []
        with self.searching(k, exact) as ask:
            for query in texts(queries):
                hits.append([(score, self.key(one)) for one, score in ask(text, query, query)])
        return ranked(hits, k, self)

    def search_half(self, new, queries_old, queries_new, k, affine, *, way="dual", exact=False):
        """Search as `half.search_half` does, with one statement per query."""
        if not self.shares_server(new):
            return super().search_half(
                new, queries_old, queries_new, k, affine, way=way, exact=exact
            )
        check_way(way, affine, len(queries_old), len(queries_new))
        other = {
            name: new.names[column]
            for name, column in (("other", "t"), ("key", "id"), ("over", "ver"))
        }
        migrated = "exists (select 1 from {other} o where o.{key} = s.{id} and o.{over} = 1)"
        depth = depth_of(way, k)
        parts = {
            "old": self.nearest(k, f"not {migrated}", **other),
            "new": new.nearest(depth, f"s.{{ver}} = {NEW}"),
            "k": self.sql.Literal(int(k)),
        }
        if way == "fused":
            parts["done"] = self.nearest(depth, migrated, **other)
            parts |= {"of_old": self.score("s"), "of_new": new.score("o")}
        text = self.sql.SQL(_DUAL if way == "dual" else _FUSED).format(
            **self.names, **other, **parts
        )
        hits = []
        with self.searching(depth, exact) as ask:
            for q, (old, new_) in enumerate(
                zip(texts(queries_old), texts(queries_new), strict=True)
            ):
                row = {name: float(values[q]) for name, values in vars(affine).items()}
                keep, a, b = (row["keep"], row["keep_shift"]), row["fused_old"], row["fused_new"]
                values = [old, old, new_, new_, *keep, row["dual"], row["dual_shift"]]
                if way == "fused":
                    values = [old] * 4 + [new_] * 2 + [*keep, old, a, new_, b, row["fused_shift"]]
                hits.append([(score, self.key(one)) for one, score in ask(text, *values)])
        return ranked(hits, k, self)


def texts(vectors) -> list[str]:
    """Return vectors (n, D) in pgvector's syntax; nine digits keep every bit of float32."""
    rows = np.asarray(vectors, np.float32).tolist()
    return ["[" + ",".join(f"{value:.9g}" for value in row) + "]" for row in rows]
