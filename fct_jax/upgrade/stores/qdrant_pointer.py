"""The pointer of a Qdrant collection."""

import json
import uuid

from fct_jax.upgrade.stores.pointer import Pointer

_STATE = "fct_jax"  # our collection of pointers


class QdrantPointer(Pointer):
    """A pointer in a small collection: a point that changes only at the expected generation."""

    @property
    def _id(self) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, self.first.name))

    def _payload(self) -> dict:
        db = self.first.db
        if not db.collection_exists(_STATE):
            return {}
        found = db.retrieve(_STATE, [self._id], consistency="all")
        return found[0].payload if found else {}

    def load(self):
        found = self._payload()
        return json.loads(found["value"]) if found else None

    def swap(self, value, expect):
        db, m, mark = self.first.db, self.first.models, str(uuid.uuid4())
        if not db.collection_exists(_STATE):
            size = m.VectorParams(size=1, distance=m.Distance.DOT)
            db.create_collection(_STATE, vectors_config=size)
        row = {"value": json.dumps(value), "generation": expect + 1, "mark": mark}
        point = m.PointStruct(id=self._id, vector=[0.0], payload=row)
        match = m.FieldCondition(key="generation", match=m.MatchValue(value=expect))
        expected = m.Filter(must=[match])  # a point that does not exist yet is inserted
        db.upsert(_STATE, [point], wait=True, update_filter=expected, ordering="strong")
        return self._payload().get("mark") == mark
