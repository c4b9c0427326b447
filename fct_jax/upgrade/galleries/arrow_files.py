"""Arrow IPC files as a gallery: ``.arrow``, ``.feather``, and folders of Hugging Face datasets."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from fct_jax.errors import UserError
from fct_jax.upgrade.galleries.base import Options
from fct_jax.upgrade.galleries.embedding_set import SetTarget
from fct_jax.upgrade.galleries.names import natural
from fct_jax.upgrade.galleries.tables import Part, TableGallery


class ArrowGallery(TableGallery):
    """A file, or the folder that ``datasets.Dataset.save_to_disk`` makes, in its own order."""

    writer = SetTarget

    def __init__(self, path, options: Options):
        path = Path(path)
        if (path / "dataset_dict.json").is_file():
            splits = json.loads((path / "dataset_dict.json").read_text())["splits"]
            raise UserError(
                f"{path} holds the splits {', '.join(splits)}; name one: {path / splits[0]}"
            )
        super().__init__(path, [ArrowPart(file) for file in _files(path)], {}, options)


class ArrowPart(Part):
    """One file, in Arrow's file or stream format; it is memory-mapped and read where needed."""

    def __init__(self, path: Path):
        self.path, self.name = path, path.name
        try:
            with pa.memory_map(str(path)) as file:
                reader = _reader(file)
                self.schema = reader.schema
                self.groups = [batch.num_rows for batch in _batches(reader)]
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from None

    def batches(self, names: list[str], group: int, size: int) -> Iterator[pa.RecordBatch]:
        with pa.memory_map(str(self.path)) as file:
            for number, batch in enumerate(_batches(_reader(file))):
                for start in range(0, batch.num_rows, size) if number >= group else ():
                    yield batch.select(names).slice(start, size)


def _reader(file):
    try:
        return pa.ipc.open_file(file)
    except pa.ArrowInvalid:
        file.seek(0)
        return pa.ipc.open_stream(file)


def _batches(reader) -> Iterator[pa.RecordBatch]:
    if hasattr(reader, "get_batch"):
        return (reader.get_batch(number) for number in range(reader.num_record_batches))
    return iter(reader)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if (path / "state.json").is_file():
        state = json.loads((path / "state.json").read_text())
        return [path / file["filename"] for file in state["_data_files"]]
    return sorted(path.glob("*.arrow"), key=lambda f: natural(f.name))
