"""Upgrades of a Qdrant collection in place: a second, named vector of the same points.

Version and token are two fields of the payload, as in a sibling of its own. Vector and payload
cannot be written in one operation, so the token is `WRITING` while the vector changes: after a
crash in between the row counts as outdated, and is written again.
"""

import json

import numpy as np

from fct_jax.errors import UserError
from fct_jax.upgrade.stores.base import plain, second

WRITING = -1


def add(store, dim: int, meta: dict) -> str:
    """Add the named vector to the collection of a store, unless it has it; return its name.

    The server needs version 1.18. The collection's metadata describe the vector. Raises UserError
    if the old vector has no name.
    """
    if not store.vector:
        raise UserError(
            f"{store.uri}: its vector has no name, and writes without a name could fail once there "
            "are two; upgrade without in_place, into a collection beside it"
        )
    m, name = store.models, store.sibling_name(meta, store.vector)
    params = store.db.get_collection(store.name).config.params.vectors
    if not (isinstance(params, dict) and name in params):
        made = m.DenseVectorConfig(size=dim, distance=store.distance)
        store.db.create_vector_name(store.name, name, m.DenseVectorNameConfig(dense=made))
        for key in second(name) if store.is_server else ():
            kind = m.PayloadSchemaType.INTEGER
            store.db.create_payload_index(store.name, key, field_schema=kind, wait=True)
    meta = {**meta, "source": str(store.uri), "id_kind": store.id_kind}
    store.db.update_collection(store.name, metadata={f"fct_jax:{name}": json.dumps(meta)})
    return name


def write(store, ids, vectors, version: int, tokens) -> None:
    """Write the second vectors of existing points (no others), except the application's own."""
    m, (ver, seen), wanted = store.models, second(store.vector), [plain(one) for one in ids]
    marked = m.SetPayload(
        payload={seen: WRITING},
        filter=m.Filter(must=[m.HasIdCondition(has_id=wanted)], must_not=[of_app(store)]),
    )
    points = [
        m.PointVectors(id=one, vector={store.vector: row})
        for one, row in zip(wanted, np.asarray(vectors, np.float32).tolist(), strict=True)
    ]
    ours = m.FieldCondition(key=seen, match=m.MatchValue(value=WRITING))
    changed = m.UpdateVectors(points=points, update_filter=m.Filter(must=[ours]))
    done = [
        m.SetPayload(payload={ver: int(version), seen: int(token)}, points=[one])
        for one, token in zip(wanted, tokens, strict=True)
    ]
    operations = [
        m.SetPayloadOperation(set_payload=marked),
        m.UpdateVectorsOperation(update_vectors=changed),
        *(m.SetPayloadOperation(set_payload=one) for one in done),
    ]
    store.db.batch_update_points(store.name, operations, wait=True)


def delete(store, ids: list) -> None:
    """Remove the second vectors of points."""
    store.db.delete_vectors(store.name, [store.vector], ids, wait=True)
    store.db.delete_payload(store.name, list(second(store.vector)), ids, wait=True)


def of_app(store):
    """Return the condition for points whose second vector the application wrote."""
    m, (_, seen) = store.models, second(store.vector)
    empty = m.IsEmptyCondition(is_empty=m.PayloadField(key=seen))
    return m.Filter(must=[m.HasVectorCondition(has_vector=store.vector), empty])
