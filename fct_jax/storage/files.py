"""Crash-safe writes: after a kill, a file has either its old or its new content.

Windows has neither ``flock`` nor directories that can be synced: there, a second run in the same
place is not refused, and a power cut may undo a rename.
"""

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from fct_jax.errors import UserError

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None


@contextlib.contextmanager
def disk_errors(path: Path):
    """Convert errors of a full or broken disk, which are not the program's, to UserError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: {reason}; fix this and repeat the command to resume") from error


def check_free(path) -> None:
    """Raise UserError if the folder cannot be made: the name is taken, or access is denied.

    Call this before long work, whose result would be lost.
    """
    path = Path(path)
    if path.exists():
        raise UserError(f"{path} exists already; nothing was overwritten")
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    with disk_errors(path):
        tempfile.TemporaryFile(dir=nearest).close()


def sync_directory(path: Path) -> None:
    """Flush the names in a directory (new files, renames), so that they survive a crash."""
    if os.name == "nt":
        return  # Windows cannot open a directory
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_files(folder: Path) -> None:
    """Flush all files of a directory and their names, so that they survive a crash."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_directory(folder)


def write_synced(path: Path, data: bytes, shared: bool = False) -> None:
    """Replace a small file, completely or not at all; it is on disk when this returns.

    shared: whether other processes may write it at the same time; one of them wins.
    """
    replace_synced(path, lambda file: file.write(data), shared)


def replace_synced(path: Path, write: Callable, shared: bool = False) -> None:
    """Replace a file by what ``write`` writes to an open one, as `write_synced` does."""
    unique = f"{secrets.token_hex(8)}." if shared else ""
    partial = path.with_name(f".{path.name}.{unique}partial")
    with partial.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_directory(path.parent)


class Lock:
    """A lock file beside ``path``, which one run at a time may make; it ends with its process.

    The processes of one run share it: the first takes it alone, then shares it with the others.
    As a context it is taken, and removed at the end. On Windows it does nothing.
    """

    def __init__(self, path: Path, refusal: str = ""):
        """Take a path and the message for a second run, by default that the path is being made."""
        self.path = path.with_name(f".{path.name}.lock")
        self._refusal = refusal or (
            f"another run is making {path}; wait for it, or choose another name"
        )
        self._file = None

    def __enter__(self) -> "Lock":
        self.take()
        return self

    def __exit__(self, *exception) -> None:
        self.remove()

    @property
    def held(self) -> bool:
        """Return whether this process holds the lock."""
        return self._file is not None

    def take(self) -> None:
        """Take the lock. Raises UserError if another run, or a leftover of one, holds it."""
        while True:
            self._lock(exclusive=True)
            # Its last owner may have removed the name since it was opened.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(self.path.stat(), os.fstat(self._file.fileno())):
                    return
            self.close()

    def share(self) -> None:
        """Share the lock. Raises UserError if a process holds it exclusively."""
        self._lock(exclusive=False)

    def _lock(self, exclusive: bool) -> None:
        if self._file is None:
            self._file = self.path.open("a")
        if fcntl is None:
            return
        kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        try:
            fcntl.flock(self._file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise UserError(self._refusal) from None
        except OSError:
            pass  # a file system without locks, which cannot refuse a second run

    def close(self) -> None:
        """Release the lock; other processes of the run may still hold it."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        """Release the lock at the end of the run, and remove its file."""
        if self._file is not None:
            if os.name == "nt":
                self.close()  # Windows removes no file that is open
            self.path.unlink(missing_ok=True)
            self.close()


class new_directory:
    """Context: a temporary folder that gets its final name only if no error occurs.

    The next run deletes what a killed run left. Raises UserError if the final name is taken, or if
    another run is making it.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.partial = self.path.with_name(f".{self.path.name}.new")
        self._lock = Lock(self.path)

    def __enter__(self) -> Path:
        self._check_free()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock.take()
        try:
            self._check_free()  # again: a run that had the lock may just have ended
            if self.partial.exists():
                shutil.rmtree(self.partial)
            self.partial.mkdir()
        except BaseException:
            self._lock.remove()
            raise
        return self.partial

    def _check_free(self) -> None:
        if self.path.exists():
            raise UserError(f"{self.path} exists already; nothing was overwritten")

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None:
                self.partial.rename(self.path)
            else:
                shutil.rmtree(self.partial)
        finally:
            self._lock.remove()
