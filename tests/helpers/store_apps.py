"""Applications that own a store and write to it with its own client, not with ours."""

import time
import uuid

import numpy as np
from patience import LONG

OLD, NEW = 16, 24  # dimensions
COUNT = 1500


def vectors(count: int, seed: int, dim: int = OLD) -> np.ndarray:
    """Return (count, dim) float32 vectors of unit length around a few centres."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(20, dim))
    rows = centres[rng.integers(20, size=count)] + 0.5 * rng.normal(size=(count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def ids(kind: str, start: int, stop: int) -> list:
    """Return ids of a kind; integers have gaps, and the other kinds are not in order."""
    if kind == "int":
        return [number * 3 + 5 for number in range(start, stop)]
    if kind == "uuid":
        return [str(uuid.uuid5(uuid.NAMESPACE_URL, str(n))) for n in range(start, stop)]
    return [f"item '{number * 7919 % 10007}' ü\"\\{number}" for number in range(start, stop)]


def plain_map(rows: np.ndarray) -> np.ndarray:
    """Map (n, OLD) to (n, NEW), each row on its own, so that the batch does not matter."""
    weights = np.random.default_rng(3).normal(size=(OLD, NEW)).astype(np.float32)
    return np.stack([(row[:, None] * weights).sum(axis=0) for row in np.asarray(rows)])


def new_model(rows):
    """Return the new model's vectors for old ones: (n, OLD) to (n, NEW) float32."""
    weights = np.random.default_rng(9).normal(size=(OLD, NEW)).astype(np.float32)
    rows = np.asarray(rows, np.float32)
    made = rows @ weights + 0.2 * np.tanh(3 * rows @ weights)
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


class App:
    """The owner of ``items``. Subclasses define how rows are put, changed, deleted and listed.

    Only the database's own client writes to it, and no code of this project.
    """

    def __init__(self, place: str, kind: str, metric: str = "cosine"):
        self.place, self.kind, self.metric = place, kind, metric

    def open(self):
        """Open the database again, after `close`; it may be open already."""

    def filled(self):
        """Create the collection with COUNT rows."""
        self.create()
        self.put(ids(self.kind, 0, COUNT), vectors(COUNT, 1))
        return self


class PostgresApp(App):
    def __init__(self, place, kind, metric="cosine"):
        import psycopg

        super().__init__(place, kind, metric)
        self.db = psycopg.connect(place, autocommit=True)
        self.uri = f"{place}&table=items&id=key&vector=embedding&metric={metric}"

    def create(self, dim=OLD, type_="vector"):
        kind = {"int": "bigint", "uuid": "uuid", "text": "text"}[self.kind]
        self.db.execute(
            "drop table if exists items, fct_jax; "
            f"create table items (key {kind} primary key, title text, embedding {type_}({dim}))"
        )
        for (name,) in self.db.execute(
            "select tablename from pg_tables where tablename like 'items\\_\\_%'"
        ).fetchall():
            self.db.execute(f'drop table "{name}"')
        for (name,) in self.db.execute(
            "select proname from pg_proc where proname like 'fct\\_jax\\_%'"
        ).fetchall():
            self.db.execute(f'drop function "{name}" cascade')

    def put(self, ids, rows, table="items", column="embedding", key="key"):
        with self.db.cursor() as cursor:
            cursor.executemany(
                f'insert into "{table}" ({key}, {column}) values (%s, %s) on conflict ({key}) '
                f"do update set {column} = excluded.{column}",
                [(one, str(row.tolist())) for one, row in zip(ids, rows, strict=True)],
            )

    def put_new(self, target, ids, rows):
        self.put(ids, rows, target.name, "vector", "id")

    def put_second(self, target, ids, rows):
        column = target.uri.params["vector"]
        for one, row in zip(ids, rows, strict=True):
            text = f"update items set {column} = %s where key = %s"
            self.db.execute(text, (str(row.tolist()), one))

    def delete(self, ids):
        cast = {"int": "bigint", "uuid": "uuid", "text": "text"}[self.kind]
        self.db.execute(f"delete from items where key = any(%s::{cast}[])", (list(ids),))

    def rows(self, target=None):
        what = "key, embedding" if target is None else "id, vector"
        table = "items" if target is None else target.name
        found = self.db.execute(
            f'select {what.replace(", ", "::text, ")}::real[] from "{table}"'
        ).fetchall()
        make = int if self.kind == "int" else str
        return {make(one): np.array(row, np.float32) for one, row in found}

    def close(self):
        self.db.close()


class QdrantApp(App):
    def __init__(self, place, kind, metric="cosine"):
        super().__init__(place, kind, metric)
        self.uri = place + ("/items" if ":memory:" in place else "#items")
        self.open()

    def open(self):
        from fct_jax.upgrade.stores.qdrant import _connect
        from fct_jax.upgrade.stores.uri import parse

        self.db = _connect(parse(self.uri))  # a process may open a local database only once

    def create(self, dim=OLD):
        from qdrant_client import models

        for found in self.db.get_collections().collections:
            self.db.delete_collection(found.name)
        distance = {"cosine": "Cosine", "ip": "Dot", "l2": "Euclid"}[self.metric]
        self.db.create_collection(
            "items", vectors_config=models.VectorParams(size=dim, distance=distance)
        )

    def put(self, ids, rows, name="items"):
        from qdrant_client import models

        self.db.upsert(
            name,
            [
                models.PointStruct(id=one, vector=row.tolist(), payload={"title": f"t{one}"})
                for one, row in zip(ids, rows, strict=True)
            ],
        )

    def put_new(self, target, ids, rows):
        self.put(ids, rows, target.name)

    def delete(self, ids):
        from qdrant_client import models

        self.db.delete("items", models.PointIdsList(points=list(ids)))

    def rows(self, target=None):
        found, _ = self.db.scroll(
            target.name if target else "items", limit=10**6, with_vectors=True
        )
        rows = {point.id: np.array(point.vector, np.float32) for point in found}
        if self.metric == "cosine" and ":memory:" not in self.place:
            # Once opened again, the client's local database returns vectors as they were put.
            rows = {one: row / np.linalg.norm(row) for one, row in rows.items()}
        return rows

    def close(self):
        from fct_jax.upgrade.stores import open_store

        if ":memory:" not in self.place:
            open_store(self.uri).close()


class LanceApp(App):
    def __init__(self, place, kind, metric="cosine"):
        import lancedb

        super().__init__(place, kind, metric)
        self.uri = f"{place}?id=key&vector=embedding&metric={metric}#items"
        self.db = lancedb.connect(place.removeprefix("lancedb://"))

    def table(self, ids, rows, dim=OLD):
        import pyarrow as pa

        kind = pa.int64() if self.kind == "int" else pa.string()
        flat = pa.array(np.asarray(rows, np.float32).ravel())
        return pa.table(
            {
                "key": pa.array(ids, kind),
                "title": pa.array([f"t{one}" for one in ids], pa.string()),
                "embedding": pa.FixedSizeListArray.from_arrays(flat, dim),
            }
        )

    def create(self, dim=OLD):
        self.db.drop_all_tables()
        self.db.create_table("items", self.table([], np.zeros((0, dim)), dim))

    def put(self, ids, rows, name="items"):
        import datetime

        table = self.db.open_table(name)
        merge = table.merge_insert("key").when_matched_update_all().when_not_matched_insert_all()
        rows = self.table(ids, rows, np.asarray(rows).shape[1])
        merge.execute(rows, timeout=datetime.timedelta(seconds=LONG))

    def put_second(self, target, ids, rows):
        # The application deletes and adds whole rows, without our columns.
        import pyarrow as pa

        old, column = self.rows(), target.uri.params["vector"]
        self.delete(ids)
        made = self.table(ids, np.stack([old[one] for one in ids]))
        flat = pa.array(np.asarray(rows, np.float32).ravel())
        second = pa.FixedSizeListArray.from_arrays(flat, np.shape(rows)[1])
        self.db.open_table("items").add(made.append_column(column, second))

    def put_new(self, target, ids, rows):
        # The application writes rows of its own, without our columns.
        table = self.db.open_table(target.name)
        table.delete(f"key in ({','.join(map(target.literal, ids))})")
        table.add(self.table(ids, rows, np.asarray(rows).shape[1]))

    def delete(self, ids):
        quoted = [str(i) if self.kind == "int" else "'" + i.replace("'", "''") + "'" for i in ids]
        self.db.open_table("items").delete(f"key in ({','.join(quoted)})")

    def rows(self, target=None):
        found = self.db.open_table(target.name if target else "items").to_arrow().to_pylist()
        assert len({row["key"] for row in found}) == len(found), "an id is there twice"
        return {row["key"]: np.array(row["embedding"], np.float32) for row in found}

    def close(self):
        pass


class MilvusApp(App):
    def __init__(self, place, kind, metric="cosine"):
        from pymilvus import MilvusClient

        super().__init__(place, kind, metric)
        self.uri = f"{place}/items"
        self.db = self._client(MilvusClient, place.replace("milvus://", "http://"))

    @staticmethod
    def _client(make, url):
        """Connect; a server rejects clients for a while if earlier ones pinged it too often."""
        from pymilvus.exceptions import MilvusException

        for seconds in (1, 5, 20):
            try:
                return make(url, timeout=LONG)
            except MilvusException:
                time.sleep(seconds)
        return make(url, timeout=LONG)

    def create(self, dim=OLD):
        from pymilvus import DataType

        for name in self.db.list_collections():
            self.db.drop_collection(name)
        schema = self.db.create_schema(auto_id=False, enable_dynamic_field=True)
        kind = {"datatype": DataType.INT64}
        if self.kind == "text":
            kind = {"datatype": DataType.VARCHAR, "max_length": 100}
        schema.add_field("key", is_primary=True, **kind)
        schema.add_field("title", DataType.VARCHAR, max_length=100)
        schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=dim)
        index = self.db.prepare_index_params()
        index.add_index("embedding", index_type="FLAT", metric_type=self.metric.upper())
        self.db.create_collection(
            "items", schema=schema, index_params=index, consistency_level="Strong"
        )

    def put(self, ids, rows, name="items"):
        self.db.upsert(
            name,
            [
                {"key": one, "title": f"t{one}"[:90], "extra": len(str(one)), "embedding": row}
                for one, row in zip(ids, np.asarray(rows, np.float32), strict=True)
            ],
        )

    def put_new(self, target, ids, rows):
        self.put(ids, rows, target.name)

    def delete(self, ids):
        import json

        quoted = ",".join(json.dumps(one, ensure_ascii=False) for one in ids)
        self.db.delete("items", filter=f"key in [{quoted}]")

    def rows(self, target=None):
        found = self.db.query(
            target.name if target else "items",
            limit=16384,
            output_fields=["key", "embedding"],
            consistency_level="Strong",
        )
        return {row["key"]: np.array(row["embedding"], np.float32) for row in found}

    def close(self):
        self.db.close()


APPS = {"postgres": PostgresApp, "qdrant": QdrantApp, "lance": LanceApp, "milvus": MilvusApp}


class Writer:
    """Inserts 500 rows, changes 100 and deletes 100, a few at each of 20 steps."""

    def __init__(self, app):
        self.app, self.steps = app, []
        for step in range(20):
            new = ids(app.kind, COUNT + step * 25, COUNT + step * 25 + 25)
            changed = [ids(app.kind, n, n + 1)[0] for n in range(step, COUNT, COUNT // 5)][:5]
            gone = [ids(app.kind, n, n + 1)[0] for n in range(200 + step, COUNT, COUNT // 5)][:5]
            self.steps.append((new, changed, gone))

    def step(self):
        if self.steps:
            new, changed, gone = self.steps.pop()
            self.app.put([*new, *changed], vectors(len(new) + len(changed), len(self.steps)))
            self.app.delete(gone)


def expected(app, mapped=plain_map):
    """Return id -> the vector that the target must hold for it."""
    rows = app.rows()
    mapped = mapped(np.array(list(rows.values())))
    return dict(zip(rows, stored(app, mapped), strict=True))


def stored(app, rows):
    """Return vectors as a store gives them back."""
    if isinstance(app, QdrantApp) and app.metric == "cosine":
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def assert_agree(app, target, mapped=plain_map, within=1e-6):
    """Assert that old and new have the same ids, and that each new vector belongs to its old one.

    ``within`` is the tolerance: the last bits of a map's output depend on the rows of the batch.
    """
    want, have = expected(app, mapped), app.rows(target)
    assert want.keys() == have.keys()
    for one, row in want.items():
        np.testing.assert_allclose(have[one], row, rtol=within, atol=within)
