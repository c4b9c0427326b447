"""An unfinished EmbeddingSet, made shard by shard by any number of processes and runs.

    .NAME.partial/            beside the future set; it belongs to one plan
        plan.json             the plan: the model, the data, the sizes
        shards/00000.json     a finished shard: its rows, their checksums, skipped rows
        set/                  vectors.npy and uncertainty.npy, with every row in its place

A shard is recorded once its rows are on disk, so that a run resumes where one was killed. When
all shards are finished, the writer compares every row with its checksum, adds the other files and
gives ``set`` its name.
"""

import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from fct_jax.errors import UserError
from fct_jax.runtime import processes
from fct_jax.storage import checksums
from fct_jax.storage import rows as columns
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.storage.files import Lock, disk_errors, sync_directory, sync_files, write_synced


class PartialSet:
    """Context for making a set, entered by every process of the run; they share the folder.

    Attributes:
      folder: ``.NAME.partial``.
      todo: numbers of the shards that were not finished when the run began.
      shard_count: number of shards.
    """

    def __init__(self, out, plan: dict, count: int, shapes: columns.Shapes, shard_size: int):
        """
        Args:
          out: the directory to make.
          plan: name -> what JSON holds; rows of two plans are never mixed.
          count: N, rows if none is skipped.
          shapes: shape of a row of each file.
          shard_size: rows of a shard.
        """
        self.out, self.folder = Path(out), _folder(out)
        self._set = self.folder / "set"
        sizes = {"rows": count, "shard_size": shard_size, "columns": shapes}
        self._plan = json.loads(json.dumps({**plan, **sizes}))
        self._count, self._shard_size, self._shapes = count, shard_size, shapes
        self.shard_count = -(-count // shard_size)
        self._lock = Lock(self.out)

    def __enter__(self) -> "PartialSet":
        try:
            self.todo = processes.from_writer(self._begin, "embedding begins")
            if not processes.is_writer():
                wait_for(self.folder / "plan.json")
                self._lock.share()
                self._check_plan(f"process 0 makes another embedding than {processes.index()}", "")
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(self, kind, error, trace) -> None:
        done = sum(self._finished()) if processes.is_writer() else 0
        if error is not None and done:
            print(
                f"{self.out}: {done} of {self.shard_count} shards are finished; "
                "the same command resumes from there"
            )
        self._leave()

    def span(self, number: int) -> range:
        """Return the rows of a shard."""
        start = number * self._shard_size
        return range(start, min(start + self._shard_size, self._count))

    def share(self) -> list[int]:
        """Return the unfinished shards of this process, ascending."""
        return [int(n) for n in np.array_split(self.todo, processes.count())[processes.index()]]

    def write(self, numbers: list[int], blocks: Iterable[tuple[np.ndarray, ...]]) -> None:
        """Write and record shards.

        Args:
          numbers: numbers of the shards, ascending.
          blocks: (rows (n,), vectors (n, D), uncertainty (n,) if there is one): ascending rows of
            these shards, each block within one. Rows that are missing were skipped.
        """
        left = dict.fromkeys(numbers)
        with columns.Columns(self._set, self._shapes) as files:
            for number, group in itertools.groupby(
                blocks, lambda block: int(block[0][0]) // self._shard_size
            ):
                self._write_shard(number, group, files)
                del left[number]
            for number in left:  # not one image of it could be read
                self._write_shard(number, (), files)

    def finish(
        self,
        companions: Callable[[list[int]], tuple],
        add_files: Callable[[Path], None] | None = None,
    ) -> None:
        """Wait for all processes, and make the set from their rows.

        Args:
          companions: called on the writer with the rows that were skipped; gives the ids (n,) and
            labels (n,) or None of the others, and more entries for ``meta.json``.
          add_files: called on the writer with the folder of the set before that takes its name.

        Raises:
          UserError: there is no row at all, or rows on disk are not as they were written; the next
            run makes these again.
        """
        processes.barrier("shards are written")
        processes.from_writer(lambda: self._finish(companions, add_files), "embedding ends")
        wait_for(self.out / "meta.json")

    def _begin(self) -> list[int]:
        """Take the lock and lay out the folder, on the writer; return the unfinished shards."""
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self._lock.take()
        if self.out.exists():
            raise UserError(f"{self.out} exists already; nothing was overwritten")
        done = self._finished()
        if any(done):
            what = f"{self.folder} holds {sum(done)} finished shards of another embedding"
            self._check_plan(what, "; remove it, or choose another name")
            print(f"{self.out}: {sum(done)} of {self.shard_count} shards were finished before")
        else:
            with disk_errors(self.folder):
                self._lay_out()
        if processes.count() > 1:
            self._lock.share()
        return [n for n in range(self.shard_count) if not done[n]]

    def _check_plan(self, what: str, advice: str) -> None:
        there, now = json.loads((self.folder / "plan.json").read_text()), self._plan
        keys = [key for key in {**there, **now} if there.get(key) != now.get(key)]
        if keys:
            changes = "; ".join(f"{k}: {there.get(k)} there, {now.get(k)} now" for k in keys)
            raise UserError(f"{what} ({changes}){advice}")

    def _lay_out(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "shards").mkdir(parents=True)
        self._set.mkdir()
        needed = columns.needed_bytes(self._shapes, self._count)
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise UserError(
                f"{self.out.parent} has {free / 1e9:.1f} GB free, "
                f"but the embeddings need {needed / 1e9:.1f} GB"
            )
        columns.lay_out(self._set, self._shapes, self._count)
        sync_files(self._set)
        write_synced(self.folder / "plan.json", json.dumps(self._plan, indent=2).encode())

    def _leave(self) -> None:
        """Release the lock; keep the files from which another run can resume."""
        if not processes.is_writer():
            self._lock.close()
        elif self._lock.held:
            if self.out.exists() or (processes.count() == 1 and not any(self._finished())):
                shutil.rmtree(self.folder, ignore_errors=True)
            self._lock.remove()

    def _finished(self) -> list[bool]:
        begun = (self.folder / "plan.json").is_file()
        return [begun and self._path(n).is_file() for n in range(self.shard_count)]

    def _path(self, number: int) -> Path:
        return self.folder / "shards" / f"{number:05d}.json"

    def _write_shard(self, number: int, blocks, files: columns.Columns) -> None:
        span, kept = self.span(number), [np.empty(0, np.int64)]
        at, sums = span.start, dict.fromkeys(self._shapes, 0)
        for rows, *arrays in blocks:
            for name, array in zip(self._shapes, arrays, strict=True):
                sums[name] = files.write(name, at, array, sums[name])
            at += len(rows)
            kept.append(rows)
        files.sync()
        record = {
            "start": span.start,
            "count": at - span.start,
            "checksums": {name: checksums.text(value) for name, value in sums.items()},
            "skipped": np.setdiff1d(span, np.concatenate(kept)).tolist(),
        }
        with disk_errors(self.folder):
            write_synced(self._path(number), json.dumps(record).encode())

    def _finish(self, companions: Callable, add_files: Callable | None) -> None:
        """Verify, assemble and rename, on the writer."""
        paths = [self._path(n) for n in range(self.shard_count)]
        for path in paths:
            wait_for(path)
        records = [json.loads(path.read_text()) for path in paths]
        self._verify(records)
        skipped = list(itertools.chain.from_iterable(r["skipped"] for r in records))
        records = [record for record in records if record["count"]]
        if not records:
            (self.folder / "plan.json").unlink()
            raise UserError(f"no image of {self._count} could be read")
        starts = itertools.accumulate((record["count"] for record in records), initial=0)
        shards = [
            {"start": start, "count": r["count"], "checksum": r["checksums"]["vectors"]}
            for start, r in zip(starts, records, strict=False)
        ]
        companion = companions(skipped)
        with disk_errors(self.folder):
            folder = self._without_holes(records) if skipped else self._set
            self._complete(folder, shards, *companion)
            if add_files is not None:
                add_files(folder)
            sync_files(folder)
            folder.rename(self.out)
            sync_directory(self.out.parent)

    def _complete(self, folder: Path, shards: list[dict], ids, labels, meta: dict) -> None:
        """Add the other files to the rows."""
        vectors = np.load(folder / "vectors.npy", mmap_mode="r")
        made = EmbeddingSet(vectors, ids, labels, meta=meta, name=str(self.out))
        made.check()
        for path in folder.iterdir():  # of a run that was killed here
            if path.stem not in self._shapes:
                path.unlink()
        made.write_companions(folder, shards)

    def _verify(self, records: list[dict]) -> None:
        """Read all rows once and drop shards that differ from their records. Raises UserError."""
        spans = [(record["start"], record["count"]) for record in records]
        with columns.Columns(self._set, self._shapes) as files:
            for name in self._shapes:
                found = files.checksums(name, spans)
                bad = [n for n, r in enumerate(records) if r["checksums"][name] != found[n]]
                for number in bad:
                    self._path(number).unlink()
                if bad:
                    rows = self.span(bad[0])
                    raise UserError(
                        f"{self._set / name}.npy is damaged in {len(bad)} shards, first in "
                        f"{bad[0]} (rows {rows[0]}–{rows[-1]}): its rows differ from those "
                        "written; the same command makes them again"
                    )

    def _without_holes(self, records: list[dict]) -> Path:
        """Return a copy of the rows without the places of skipped ones."""
        folder = self.folder / "kept"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        spans = [(record["start"], record["count"]) for record in records]
        columns.copy_spans(self._set, folder, self._shapes, spans)
        return folder


def remove_leftover(out) -> None:
    """Remove the remains of a run that was killed after it had given the set its name."""
    if not Path(out).name or not processes.is_writer():
        return
    lock = Lock(Path(out))
    if _folder(out).exists() or lock.path.exists():
        try:
            lock.take()
        except UserError:  # the run is at its end
            return
        shutil.rmtree(_folder(out), ignore_errors=True)
        lock.remove()


def _folder(out) -> Path:
    return Path(out).with_name(f".{Path(out).name}.partial")


def wait_for(path: Path, seconds: float = 60) -> None:
    """Wait until the file is visible, because a shared folder may show it late.

    Raises UserError if it is not visible after ``seconds``: the processes share no folder.
    """
    deadline = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > deadline:
            raise UserError(
                f"process {processes.index()} does not see {path}, which another one wrote; "
                "all need one shared folder"
            )
        time.sleep(0.1)
