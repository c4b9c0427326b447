"""Milvus collections; the sibling gets all scalar fields with the vectors.

Milvus has neither conditional writes nor a feed of changes. Changes of an entity are detected by a
hash of its vector and fields, and each write first looks for the application's own rows. The
sibling has a FLAT index until `MilvusStore.build_index` runs.
"""

import json
import logging.config
import os
from pathlib import Path

import numpy as np

from fct_jax.errors import UserError
from fct_jax.upgrade.stores.base import (
    BATCH_ROWS,
    SEEN,
    VERSION,
    Batch,
    Store,
    client,
    content_tokens,
    opening,
    plain,
    ranked,
)
from fct_jax.upgrade.stores.milvus_pointer import MilvusPointer
from fct_jax.upgrade.stores.uri import Uri, parse

_METRICS = {"COSINE": "cosine", "IP": "ip", "L2": "l2"}
_INDEX = {"index_type": "HNSW", "params": {"M": 16, "efConstruction": 200}}
TIMEOUT = 60  # seconds per request
_DEEPEST = 16_384  # most candidates in one search
_FLOATS = ("FLOAT_VECTOR", "FLOAT16_VECTOR", "BFLOAT16_VECTOR")


class MilvusStore(Store):
    """A collection with a primary key and one vector field, or the field named by ``?vector=``."""

    def __init__(self, uri: Uri, connection=None):
        uri.only("vector", "db", "https")
        self._milvus = _pymilvus()
        self.errors = (self._milvus.MilvusException,)
        self.uri, self.name = uri, uri.name or uri.path.strip("/")
        with opening(uri, *self.errors):
            self.db = connection or self._connect()
            if not self.db.has_collection(self.name):  # which also knows aliases
                self.refuse_unknown("collection", self.db.list_collections())
            self._describe(self.db.describe_collection(self.name))
            self.db.load_collection(self.name)

    def _connect(self):
        uri = self.uri
        if not uri.host:
            client("milvus_lite", "milvus")
            if not Path(uri.path).parent.is_dir():
                raise UserError(f"{uri}: there is no folder {Path(uri.path).parent}")
            return self._milvus.MilvusClient(uri.path)
        url = f"{'https' if uri.params.get('https') else 'http'}://{uri.host}:{uri.port or 19530}"
        token, db = os.environ.get("MILVUS_TOKEN", ""), uri.params.get("db", "")
        return self._milvus.MilvusClient(url, token=token, db_name=db, timeout=TIMEOUT)

    def _describe(self, found: dict) -> None:
        fields = {field["name"]: field for field in found["fields"]}
        self._fields, self._dynamic = fields, found["enable_dynamic_field"]
        key = next(field for field in fields.values() if field.get("is_primary"))
        self._key, self.id_kind = key["name"], "int" if key["type"].name == "INT64" else "text"
        vectors = [name for name, f in fields.items() if f["type"].name in _FLOATS]
        self._vector = self.uri.params.get("vector", vectors[0] if len(vectors) == 1 else None)
        if self._vector not in vectors:
            known = ", ".join(vectors)
            raise UserError(f"{self.uri}: choose a vector field by ?vector=…; known: {known}")
        if fields[self._vector]["type"].name != "FLOAT_VECTOR":
            raise UserError(f"{self.uri}: {self._vector!r} is not of 32-bit floats")
        self.dim = int(fields[self._vector]["params"]["dim"])
        indexes = self.db.list_indexes(self.name, field_name=self._vector)
        if not indexes:
            raise UserError(f"{self.uri}: {self._vector!r} has no index; Milvus reads none without")
        metric = self.db.describe_index(self.name, indexes[0])["metric_type"]
        if metric not in _METRICS:
            raise UserError(f"{self.uri}: metric {metric} is not supported")
        self.metric, self._indexes = _METRICS[metric], indexes
        self.meta = json.loads(found.get("properties", {}).get("fct_jax", "{}"))

    def _rows(self, condition: str, fields: list[str], limit: int) -> list[dict]:
        """Return rows by ascending id, with the same request as the client's own iterator.

        Without the iterator's two flags rows come in any order; the iterator itself fails if a
        text id contains a quotation mark or a backslash.
        """
        rows = self._query(
            condition, fields, limit=limit, iterator="True", reduce_stop_for_best="True"
        )
        return [dict(row) for row in rows]

    def _query(self, condition: str, fields: list[str], **options):
        return self.db.query(
            self.name,
            filter=condition,
            output_fields=fields,
            consistency_level="Strong",
            **options,
        )

    def _literal(self, one) -> str:
        return str(int(one)) if self.id_kind == "int" else json.dumps(str(one), ensure_ascii=False)

    def _of(self, ids, fields) -> list[dict]:
        return self._query(self._among(ids), [self._key, *fields]) if len(ids) else []

    def _among(self, ids) -> str:
        return f"{self._key} in [{','.join(map(self._literal, ids))}]"

    def count(self):
        return self._query("", ["count(*)"])[0]["count(*)"]

    def page(self, after, limit, vectors=True):
        own = [SEEN] if SEEN in self._fields else []
        rows = self._rows(self._behind(after), ["*"] if vectors else [self._key, *own], limit)
        return self._batch(rows, after, vectors)

    def _behind(self, after) -> str:
        """Return the condition for ids above a position, which holds for every id if it is None."""
        if after is None:
            return f"{self._key} >= {self._literal(-(1 << 63) if self.id_kind == 'int' else '')}"
        return f"{self._key} > {self._literal(after)}"

    def rows_of(self, ids):
        return self._batch([dict(row) for row in self._of(ids, ["*"])], None)

    def _batch(self, rows: list[dict], after, vectors: bool = True) -> Batch:
        ids = [row.pop(self._key) for row in rows]
        tokens = [row.pop(SEEN, 0) for row in rows]
        last = ids[-1] if ids else after
        if not vectors:
            return self.bare(ids, tokens, last)
        for row in rows:
            row.pop(VERSION, None)
        values = np.array([row.pop(self._vector) for row in rows], np.float32)
        values = values.reshape(-1, self.dim)
        return Batch(self.id_array(ids), values, content_tokens(values, rows), last, rows)

    def states(self, ids):
        own = [name for name in (VERSION, SEEN) if name in self._fields]
        rows = self._of(ids, own)
        return {row[self._key]: (row.get(VERSION), row.get(SEEN)) for row in rows}

    def fetch(self, ids):
        return {row[self._key]: row[self._vector] for row in self._of(ids, [self._vector])}

    def write(self, ids, vectors, version, tokens, extra=None, *, over=False):
        allowed, rows = self.writable(ids, version, tokens, over), []
        for place in np.flatnonzero(allowed):
            own = {self._key: plain(ids[place]), VERSION: int(version), SEEN: int(tokens[place])}
            own[self._vector] = np.asarray(vectors[place], np.float32)
            rows.append({**(extra[place] if extra else {}), **own})
        if rows:
            self.db.upsert(self.name, rows)
        return allowed

    def delete(self, ids):
        # ids=… is not used, because the client does not escape quotation marks in ids.
        self.db.delete(self.name, filter=self._among(ids))

    def search(self, queries, k, *, only=None, exact=False):
        # Milvus cannot search without the index; a very deep search stands in for an exact one.
        how = {"params": {"ef": _DEEPEST}} if exact else {}
        asked = list(np.asarray(queries, np.float32))
        answers = (
            self.db.search(
                self.name,
                data=asked,
                anns_field=self._vector,
                limit=k,
                filter="" if only is None else f"{VERSION} == {int(only)}",
                search_params=how,
                output_fields=[self._key],
                consistency_level="Strong",
            )
            if asked
            else []
        )
        hits = [[(self._score(hit["distance"]), hit[self._key]) for hit in one] for one in answers]
        return ranked(hits, k, self)

    def _score(self, distance: float) -> float:
        return -distance / 2 if self.metric == "l2" else distance

    def build_index(self):
        """Replace the FLAT index by HNSW; the collection does not answer in the meantime."""
        self.db.release_collection(self.name)
        for index in self._indexes:
            self.db.drop_index(self.name, index)
        self.db.create_index(self.name, self._index_params(self._vector, self.metric, **_INDEX))
        self.db.load_collection(self.name)

    def _index_params(self, field: str, metric: str, **kind):
        made = self.db.prepare_index_params()
        names = {ours: theirs for theirs, ours in _METRICS.items()}
        made.add_index(field, index_name=field, metric_type=names[metric], **kind)
        return made

    def sibling(self, dim, meta):
        if meta.get("in_place"):
            raise UserError(
                f"{self.uri}: a second vector in place is not supported in Milvus; upgrade without "
                "in_place, into a collection beside it"
            )
        name, types = self.sibling_name(meta), self._milvus.DataType
        if not self.db.has_collection(name):
            meta = {**meta, "source": str(self.uri)}
            schema = self.db.create_schema(auto_id=False, enable_dynamic_field=self._dynamic)
            for field in self._fields.values():
                if field["name"] in (self._vector, VERSION, SEEN):
                    continue
                options = {k: v for k, v in field.get("params", {}).items() if k != "dim"}
                options |= {
                    k: field[k] for k in ("is_primary", "nullable", "element_type") if field.get(k)
                }
                schema.add_field(field["name"], field["type"], **options)
            schema.add_field(self._vector, types.FLOAT_VECTOR, dim=int(dim))
            # These fields are nullable, so that the application can insert rows without them.
            schema.add_field(VERSION, types.INT8, nullable=True, default_value=1)
            schema.add_field(SEEN, types.INT64, nullable=True)
            flat = self._index_params(self._vector, self.metric, index_type="FLAT")
            self.db.create_collection(
                name,
                schema=schema,
                index_params=flat,
                consistency_level="Strong",
                properties={"fct_jax": json.dumps(meta)},
            )
        return self.same_dim(MilvusStore(parse(self.uri.with_name(name)), self.db), dim)

    def of_app(self):
        found, after = [], None
        while rows := self._rows(
            f"{self._behind(after)} and {SEEN} is null", [self._key], BATCH_ROWS
        ):
            after = rows[-1][self._key]
            found += [row[self._key] for row in rows]
        return self.id_array(found)

    def pointer(self):
        return MilvusPointer(self)

    def close(self):
        self.db.close()


def _pymilvus():
    """Import pymilvus, but let it not configure logging, which closes every handler there is."""
    configure = logging.config.dictConfig
    logging.config.dictConfig = lambda config: None
    try:
        return client("pymilvus", "milvus")
    finally:
        logging.config.dictConfig = configure
