"""A Lance dataset as a gallery."""

from collections.abc import Iterator
from pathlib import Path

import lance
import pyarrow as pa

from fct_jax.errors import UserError
from fct_jax.upgrade.galleries.base import Options
from fct_jax.upgrade.galleries.embedding_set import SetTarget
from fct_jax.upgrade.galleries.tables import Part, TableGallery

_GROUP = 1 << 13  # rows; reading can start anywhere
_SCAN = 1 << 15  # rows of a scan, which may be read completely before the first of them is used


class LanceGallery(TableGallery):
    """The version of a ``.lance`` folder that was the newest when it was opened."""

    writer = SetTarget

    def __init__(self, path, options: Options):
        path = Path(path)
        try:
            found = lance.dataset(str(path))
            parts = [LancePart(fragment) for fragment in found.get_fragments()]
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} cannot be read: {' '.join(str(error).split())[:200]}"
            ) from None
        super().__init__(path, parts, {}, options)


class LancePart(Part):
    """One fragment."""

    def __init__(self, fragment):
        self._fragment, self.name = fragment, f"fragment {fragment.fragment_id}"
        self.schema = fragment.schema
        count = fragment.count_rows()
        self.groups = [min(_GROUP, count - start) for start in range(0, count, _GROUP)]

    def batches(self, names: list[str], group: int, size: int) -> Iterator[pa.RecordBatch]:
        count = sum(self.groups)
        # A scan reads far ahead, which single rows do not need, and memory does not have.
        limit = size if size < _GROUP else _SCAN
        for first in range(group * _GROUP, count, limit):
            scanner = self._fragment.scanner(
                columns=names, batch_size=size, offset=first, limit=limit
            )
            yield from scanner.to_batches()
