"""Qdrant collections; the sibling gets the payloads with the vectors.

Qdrant has neither a feed of changes nor versions of points: changes of a point are detected by a
hash of its vector and payload. Collections that compare by cosine hold unit vectors, whatever was
written.
"""

import json
import os
import time
import uuid
from urllib.parse import quote

import numpy as np

from fct_jax.errors import UserError
from fct_jax.upgrade.stores import qdrant_second
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
    second,
)
from fct_jax.upgrade.stores.qdrant_pointer import QdrantPointer
from fct_jax.upgrade.stores.uri import Uri, parse

_METRICS = {"Cosine": "cosine", "Dot": "ip", "Euclid": "l2"}
_LOCAL = {}  # folder or ":memory:" -> client


class QdrantStore(Store):
    """A collection with one vector per point, or the named vector of ``?vector=``."""

    def __init__(self, uri: Uri, connection=None):
        uri.only("vector", "https")
        self.models = client("qdrant_client.models", "qdrant")
        self.uri, self.vector = uri, uri.params.get("vector", "")
        self._which = [self.vector] if self.vector else True
        self.name = uri.name or uri.path.strip("/")
        self.db = connection or _connect(uri)
        self.errors = (
            client("qdrant_client.http.exceptions", "qdrant").ApiException,
            client("httpx", "qdrant").HTTPError,
            OSError,
        )
        with opening(uri, *self.errors):
            if not self.db.collection_exists(self.name):  # which also knows aliases
                known = self.db.get_collections().collections
                self.refuse_unknown("collection", [found.name for found in known])
            config = self.db.get_collection(self.name).config
        params = config.params.vectors
        self._named = isinstance(params, dict) and bool(self.vector)
        if isinstance(params, dict):
            if self.vector not in params:
                known = ", ".join(params)
                raise UserError(f"{uri}: choose a vector with ?vector=…; known: {known}")
            params = params[self.vector]
        if params.multivector_config:
            raise UserError(f"{uri} holds several vectors a point, which are not supported")
        self.dim, self.distance = params.size, params.distance
        if self.distance.value not in _METRICS:
            raise UserError(f"{uri}: distance {self.distance.value} is not supported")
        self.metric = _METRICS[self.distance.value]
        self.normalises = self.metric == "cosine"
        described, own = config.metadata or {}, f"fct_jax:{self.vector}"
        self.in_place = own in described
        self._ver, self._seen = second(self.vector) if self.in_place else (VERSION, SEEN)
        self.meta = json.loads(described.get(own if self.in_place else "fct_jax", "{}"))
        self.id_kind = self._find_id_kind()

    @property
    def is_server(self) -> bool:
        return bool(self.uri.host) and self.uri.host != ":memory:"

    def _find_id_kind(self) -> str:
        numbers, _ = self.db.scroll(self.name, limit=1, with_payload=False)
        least = str(uuid.UUID(int=0))
        texts, _ = self.db.scroll(self.name, limit=1, offset=least, with_payload=False)
        if numbers and texts and isinstance(numbers[0].id, int):
            raise UserError(f"{self.uri} has both numbers and UUIDs as ids; it takes one kind")
        return "uuid" if texts else self.meta.get("id_kind", "int")

    def count(self):
        return self.db.count(self.name, self._some(), exact=True).count

    def _some(self, *conditions, ids=None):
        """Return the filter for points that have the vector and meet conditions, or None."""
        m, must = self.models, list(conditions)
        if self._named:
            must.append(m.HasVectorCondition(has_vector=self.vector))
        if ids is not None:
            must.append(m.HasIdCondition(has_id=ids))
        return m.Filter(must=must) if must else None

    def page(self, after, limit, vectors=True):
        found, _ = self.db.scroll(
            self.name,
            self._some(),
            limit=limit,
            offset=None if after is None else self._behind(after),
            with_payload=True if vectors else [self._seen, self._ver],
            with_vectors=vectors and self._which,
        )
        return self._batch(found, after, vectors)

    def rows_of(self, ids):
        return self._batch(self._points(ids, with_payload=True, with_vectors=self._which), None)

    def _batch(self, found, after, vectors=True) -> Batch:
        ids = [point.id for point in found]
        rows = [dict(point.payload or {}) for point in found]
        last = ids[-1] if ids else after
        if not vectors:
            return self.bare(ids, [row.get(self._seen) for row in rows], last)
        rows = [{k: v for k, v in row.items() if not _is_ours(k)} for row in rows]
        values = np.array([self._of(point) for point in found], np.float32).reshape(-1, self.dim)
        # Each search in the client's local mode rescales vectors to unit length in place, so their
        # last bits change by themselves.
        same = values if self.is_server else np.round(values, 2) + 0.0
        return Batch(self.id_array(ids), values, content_tokens(same, rows), last, rows)

    def _behind(self, after):
        """Return the next possible id, because Qdrant's offset is the first id of the page."""
        return after + 1 if self.id_kind == "int" else str(uuid.UUID(int=uuid.UUID(after).int + 1))

    def _of(self, point):
        return point.vector[self.vector] if isinstance(point.vector, dict) else point.vector

    def _points(self, ids, **what):
        wanted = [plain(one) for one in ids]
        if self._named and wanted:  # points that lack the vector are left out
            some = self._some(ids=wanted)
            return self.db.scroll(self.name, some, limit=len(wanted), **what)[0]
        return self.db.retrieve(self.name, wanted, **what) if wanted else []

    def states(self, ids):
        points = self._points(ids, with_payload=[self._ver, self._seen])
        rows = {point.id: point.payload or {} for point in points}
        return {one: (row.get(self._ver), row.get(self._seen)) for one, row in rows.items()}

    def fetch(self, ids):
        points = self._points(ids, with_payload=False, with_vectors=self._which)
        return {point.id: self._of(point) for point in points}

    def write(self, ids, vectors, version, tokens, extra=None, *, over=False):
        m, allowed, points = self.models, self.writable(ids, version, tokens, over), []
        if self.in_place:
            held = self.db.retrieve(self.name, [plain(one) for one in ids], with_payload=False)
            held = {point.id for point in held}
            allowed &= [plain(one) in held for one in ids]  # others have been deleted
            if allowed.any():
                args = (ids[allowed], vectors[allowed], version, tokens[allowed])
                qdrant_second.write(self, *args)
            return allowed
        for place in np.flatnonzero(allowed):
            row = {**(extra[place] if extra else {}), VERSION: int(version)}
            row[SEEN] = int(tokens[place])
            vector = np.asarray(vectors[place], np.float32).tolist()
            points.append(m.PointStruct(id=plain(ids[place]), vector=vector, payload=row))
        if points:
            # From 1.16 on the server itself keeps rows that the application has written since.
            app = m.IsEmptyCondition(is_empty=m.PayloadField(key=SEEN))
            self.db.upsert(self.name, points, wait=True, update_filter=m.Filter(must_not=[app]))
        return allowed

    def delete(self, ids):
        wanted = [plain(one) for one in ids]
        if self.in_place:
            return qdrant_second.delete(self, wanted)
        self.db.delete(self.name, self.models.PointIdsList(points=wanted), wait=True)

    def search(self, queries, k, *, only=None, exact=False):
        m, some = self.models, None
        if only is not None:
            match = m.MatchValue(value=int(only))
            some = m.Filter(must=[m.FieldCondition(key=self._ver, match=match)])
        # The local mode always compares every row, and warns if asked to.
        how = m.SearchParams(exact=True) if exact and self.is_server else None
        asked = [
            m.QueryRequest(query=query, limit=k, filter=some, using=self.vector or None, params=how)
            for query in np.asarray(queries, np.float32).tolist()
        ]
        answers = self.db.query_batch_points(self.name, asked) if asked else []
        return ranked(
            [[(self._score(p.score), p.id) for p in answer.points] for answer in answers], k, self
        )

    def _score(self, score: float) -> float:
        return -(score**2) / 2 if self.metric == "l2" else score

    def build_index(self):
        self.db.update_collection(
            self.name, optimizers_config=self.models.OptimizersConfigDiff(indexing_threshold=20_000)
        )
        while self.db.get_collection(self.name).status.value == "yellow":
            time.sleep(1)

    def sibling(self, dim, meta):
        m, name = self.models, self.sibling_name(meta)
        if meta.get("in_place"):
            self._check_server((1, 18))
            name = qdrant_second.add(self, int(dim), meta)
            place, mark, rest = self.uri.without("vector").partition("#")
            uri = f"{place}{'&' if '?' in place else '?'}vector={quote(name)}{mark}{rest}"
            return self.same_dim(QdrantStore(parse(uri), self.db), dim)
        self._check_server((1, 16))
        if not self.db.collection_exists(name):
            meta = {**meta, "source": str(self.uri), "id_kind": self.id_kind}
            config = self.db.get_collection(self.name).config
            self.db.create_collection(
                name,
                vectors_config=m.VectorParams(size=int(dim), distance=self.distance),
                # 0 turns indexing off, so that no graph is built during bulk writing.
                optimizers_config=m.OptimizersConfigDiff(indexing_threshold=0),
                metadata={"fct_jax": json.dumps(meta)},
                shard_number=config.params.shard_number,
                replication_factor=config.params.replication_factor,
                write_consistency_factor=config.params.write_consistency_factor,
                on_disk_payload=config.params.on_disk_payload,
                quantization_config=config.quantization_config,
            )
            schema = self.db.get_collection(self.name).payload_schema
            fields = {key: found.params or found.data_type for key, found in schema.items()}
            if self.is_server:
                fields[VERSION] = m.PayloadSchemaType.INTEGER  # for searches in one version
            for key, kind in fields.items():
                self.db.create_payload_index(name, key, field_schema=kind, wait=True)
        uri = parse(self.uri.without("vector")).with_name(name)  # its vector has no name
        return self.same_dim(QdrantStore(parse(uri), self.db), dim)

    def of_app(self):
        m, found, after = self.models, [], None
        app = self._some(m.IsEmptyCondition(is_empty=m.PayloadField(key=self._seen)))
        while True:
            points, after = self.db.scroll(
                self.name, app, limit=BATCH_ROWS, offset=after, with_payload=False
            )
            found += [point.id for point in points]
            if after is None:
                return self.id_array(found)

    def pointer(self):
        return QdrantPointer(self)

    def close(self):
        if self.uri.host != ":memory:":
            _LOCAL.pop(self.uri.path, None)
            self.db.close()

    def _check_server(self, least: tuple[int, int]) -> None:
        """Raise UserError if the server would ignore the conditions that guard a write."""
        if self.is_server:
            version = self.db.info().version
            if tuple(map(int, version.split(".")[:2])) < least:
                newer = ".".join(map(str, least))
                raise UserError(f"{self.uri} runs Qdrant {version}; this needs {newer} or newer")


def _is_ours(field: str) -> bool:
    """Return whether a field of the payload is a version or token of an upgrade."""
    return field in (VERSION, SEEN) or field.startswith((f"{VERSION}__", f"{SEEN}__"))


def _connect(uri: Uri):
    made = client("qdrant_client", "qdrant").QdrantClient
    if uri.host and uri.host != ":memory:":
        scheme = "https" if uri.params.get("https") else "http"
        url, key = f"{scheme}://{uri.host}:{uri.port or 6333}", os.environ.get("QDRANT_API_KEY")
        return made(url=url, api_key=key, timeout=60, check_compatibility=False)
    where = uri.host or uri.path  # a process can open a folder only once
    if where not in _LOCAL:
        _LOCAL[where] = made(":memory:") if uri.host else made(path=uri.path)
    return _LOCAL[where]
