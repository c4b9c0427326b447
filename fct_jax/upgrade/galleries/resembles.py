"""Hints for a path that is not a gallery: what it looks like, and what can be read instead."""

import difflib
from pathlib import Path

_FEW = 200  # files of a folder that are looked at

# first bytes of a file: what it is, and what to do
_MAGIC = {
    b"PGDMP": ("a dump of PostgreSQL", r"\copy (SELECT id, …) TO 'x.csv' CSV HEADER can be read"),
    b"SQLite format 3\0": ("an SQLite database", "export its table as CSV or Parquet"),
    b"\x1f\x8b": ("a gzip file", "unpack it first"),
    b"BZh": ("a bzip2 file", "unpack it first"),
    b"\xfd7zXZ": ("an xz file", "unpack it first"),
    b"\x28\xb5\x2f\xfd": ("a zstd file", "unpack it first"),
    b"\x80\x02": ("a pickle", "save its array with numpy.save"),
    b"\x80\x03": ("a pickle", "save its array with numpy.save"),
    b"\x80\x04": ("a pickle", "save its array with numpy.save"),
    b"\x80\x05": ("a pickle", "save its array with numpy.save"),
    b"PK\x03\x04": ("a zip archive (PyTorch writes such)", "save its array with numpy.save"),
    b"\x93NUMPY": ("a NumPy array", "call it NAME.npy"),
    b"PAR1": ("a Parquet file", "call it NAME.parquet"),
    b"\x89HDF": ("an HDF5 file", "call it NAME.hdf5"),
    b"ARROW1": ("an Arrow IPC file", "call it NAME.arrow"),
    b"DUCK": ("a DuckDB database", "COPY … TO 'x.parquet' can be read"),
    b"{": ("JSON", "one object a line, in a file called NAME.jsonl, can be read"),
    b"[": ("JSON", "one object a line, in a file called NAME.jsonl, can be read"),
}

# endings of file names, in a folder or alone
_ENDINGS = {
    ".tfrecord": ("TensorFlow records", "write them as Parquet"),
    ".pt": ("PyTorch tensors", "save them with numpy.save"),
    ".pth": ("PyTorch tensors", "save them with numpy.save"),
    ".safetensors": ("safetensors", "save them with numpy.save"),
    ".ckpt": ("checkpoints", "embed with the model first"),
    ".jpg": ("images", "embed them first"),
    ".png": ("images", "embed them first"),
    ".usearch": ("a USearch index", "export its vectors with numpy.save"),
    ".ann": ("an Annoy index", "export its vectors with numpy.save"),
    ".tsv": ("a table", "call it NAME.csv"),
    ".txt": ("text", "a CSV file with the columns id and vector can be read"),
}


def resembles(path, forms) -> str:
    """Return the end of a message about a path that no form recognises."""
    *others, last = [form.what for form in forms]
    known = f"give {', '.join(others)} or {last}"
    if "://" in str(path):
        return (
            ": of URIs, s3://, gs://, hf:// and file:// are read, as Parquet or numbered .npy "
            f"files; {known}"
        )
    path = Path(path)
    if not path.exists():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, beside, n=1)
        return f": nothing is there; {f'did you mean {close[0]!r}? ' if close else ''}{known}"
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(16)
        what = next((said for magic, said in _MAGIC.items() if head.startswith(magic)), None)
        what = what or _ENDINGS.get(path.suffix.lower())
        if not head:
            what = ("an empty file", known)
        return f": it looks like {what[0]}; {what[1]}" if what else f"; {known}"
    children = [p for _, p in zip(range(_FEW), sorted(path.iterdir()), strict=False)]
    held = [p.name for p in children if any(form.recognises(p) for form in forms)]
    if held:
        return f": the folder holds galleries; name one: {', '.join(held[:5])}"
    inside = [p for _, p in zip(range(_FEW), path.rglob("*"), strict=False) if p.is_file()]
    if not inside:
        return f": the folder is empty; {known}"
    for ending, (what, do) in _ENDINGS.items():
        if any(p.suffix.lower() == ending for p in inside):
            return f": the folder holds {what} ({ending}); {do}"
    return f": the folder holds {', '.join(sorted(p.name for p in inside)[:3])}, …; {known}"
