"""The pointer of a Milvus collection."""

import json
import time
import uuid

from fct_jax.upgrade.stores.pointer import Pointer

_STATE = "fct_jax"  # our collection of pointers
_LEASE = 60.0  # seconds after which an unfinished switch counts as abandoned


class MilvusPointer(Pointer):
    """A pointer in a small collection, with one row per switch.

    Milvus has no conditional write. A row counts once its writer has confirmed it, after a strongly
    consistent read has shown that there is no other row of this generation. If two switches happen
    at once, both are withdrawn.
    """

    def _rows(self) -> list[dict]:
        db = self.first.db
        if not db.has_collection(_STATE):
            return []
        return db.query(
            _STATE,
            filter=f"name == {json.dumps(self.first.name)}",
            output_fields=["*"],
            consistency_level="Strong",
        )

    def load(self):
        confirmed = [row for row in self._rows() if row["confirmed"]]
        newest = max(confirmed, key=lambda row: row["generation"], default=None)
        return newest and json.loads(newest["value"])

    def swap(self, value, expect):
        db, types = self.first.db, self.first._milvus.DataType
        if not db.has_collection(_STATE):
            schema = db.create_schema(auto_id=False)
            schema.add_field("mark", types.VARCHAR, max_length=36, is_primary=True)
            schema.add_field("name", types.VARCHAR, max_length=255)
            schema.add_field("value", types.VARCHAR, max_length=8192)
            schema.add_field("generation", types.INT64)
            schema.add_field("confirmed", types.BOOL)
            schema.add_field("at", types.DOUBLE)
            schema.add_field("unused", types.FLOAT_VECTOR, dim=2)  # each collection must have one
            flat = self.first._index_params("unused", "l2", index_type="FLAT")
            db.create_collection(
                _STATE, schema=schema, index_params=flat, consistency_level="Strong"
            )
        row = {
            "mark": str(uuid.uuid4()),
            "name": self.first.name,
            "value": json.dumps(value),
            "generation": expect + 1,
            "confirmed": False,
            "at": time.time(),
            "unused": [0.0, 0.0],
        }
        db.insert(_STATE, [row])
        others = [r for r in self._rows() if r["mark"] != row["mark"]]
        alive = [r for r in others if r["confirmed"] or row["at"] - r["at"] < _LEASE]
        if any(r["generation"] > expect for r in alive):
            db.delete(_STATE, ids=[row["mark"]])
            return False
        db.upsert(_STATE, [{**row, "confirmed": True}])
        return True
