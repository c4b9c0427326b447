"""Places where pieces are published: a folder, or a prefix in a bucket.

A published file has its whole content at once: in a folder it gets its name by a link, in a
bucket by a PUT on the condition that there is none (``If-None-Match: *``).
"""

import abc
import contextlib
import os
import secrets
import shutil
import socket
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from fct_jax.errors import UserError
from fct_jax.storage import checksums
from fct_jax.storage.files import disk_errors, sync_directory

_DONE = "_parts/finished-by.txt"
_ONE_PUT = 1 << 28  # bytes; larger files are sent in several requests, which have no condition
_STALE = 600  # seconds after which a file that was not changed is taken for a killed writer's
_REMOVED = 3600  # seconds after which such a file is removed


class Place(abc.ABC):
    """Published files by name (``piece-00003.npy``, ``gallery/part-0.parquet``).

    Attributes:
      name: name for messages.
      scratch: local folder of the files that are being written.
      records, files: prefixes of the names of records, and of files that readers of the gallery
        open.
    """

    name: str
    scratch: Path
    records: str
    files: str

    @abc.abstractmethod
    def read(self, name: str) -> bytes | None:
        """Return the content of a small file, or None if it is not there."""

    @abc.abstractmethod
    def names(self) -> dict[str, tuple[int, float]]:
        """Return {name: (bytes, time of publication)} of the files among the records."""

    @abc.abstractmethod
    def publish(self, name: str, partial: Path, again: bool = False) -> bool:
        """Publish a local file, which is removed; return False if the name is taken.

        again: replace what is there.
        """

    @abc.abstractmethod
    def seal(self, name: str, checksum: str | None = None) -> dict | None:
        """Return facts that identify a file's content, or None if it is not there.

        checksum: that of the file, if this process has just written it; None: the file is read.
        """

    @abc.abstractmethod
    def same(self, name: str, partial: Path) -> bool:
        """Return whether the published file has the content of a local one."""

    @abc.abstractmethod
    def hand_over(self, target) -> None:
        """Give the gallery's files to the target, which continues with them."""

    def prepare(self) -> None:  # noqa: B027 (a folder is the upgrade's own)
        """Say to readers that the gallery is not complete; raises UserError if it holds files."""

    def finished_by(self) -> str | None:
        """Return who has made the pieces a gallery, if several directories may do so."""
        return None

    def claim(self, workdir: Path) -> str | None:
        """Say which directory makes the pieces a gallery; return another that was first."""
        return None

    def publish_bytes(self, name: str, data: bytes, again: bool = False) -> bool:
        """Publish a small file; return False if the name is taken."""
        partial = self.partial(name)
        try:
            with disk_errors(partial):
                partial.write_bytes(data)
            return self.publish(name, partial, again)
        finally:
            partial.unlink(missing_ok=True)

    def partial(self, name: str) -> Path:
        """Return the path of a local file that nobody else writes."""
        unique = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        return self.scratch / f".{Path(name).name}.{unique}.partial"

    def writing(self) -> list[str]:
        """Return the names of files that are being written at this moment, where it is known."""
        return [path.name.split(".")[1] for path, age in self._partial_files() if age < _STALE]

    def tidy(self) -> None:
        """Remove the unfinished files of killed writers, which would fill the disk in time."""
        for path, age in self._partial_files():
            if age > _REMOVED:
                path.unlink(missing_ok=True)

    def _partial_files(self) -> Iterator[tuple[Path, float]]:
        """Yield unfinished local files, and the seconds since they were last changed."""
        for path in self.scratch.glob(".*.partial"):
            with contextlib.suppress(FileNotFoundError):
                yield path, time.time() - path.stat().st_mtime


class Folder(Place):
    """A folder on a file system, which may be shared by hosts."""

    records, files = "", "gallery/"

    def __init__(self, path: Path):
        self.path = self.scratch = Path(path)
        self.name = str(path)

    def make(self) -> None:
        """Make the folder."""
        self.path.mkdir(parents=True, exist_ok=True)

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)

    def read(self, name):
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def names(self):
        found = {}
        for entry in os.scandir(self.path) if self.path.is_dir() else ():
            with contextlib.suppress(FileNotFoundError):
                if entry.is_file() and not entry.name.startswith("."):
                    stat = entry.stat()
                    found[entry.name] = stat.st_size, stat.st_mtime
        return found

    def publish(self, name, partial, again=False):
        path = self.path / name
        with disk_errors(path):
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            if path.parent != self.path and self.path.is_dir():
                path.parent.mkdir(parents=True, exist_ok=True)
            if again:
                partial.rename(path)
            elif not _named(partial, path):
                return False
            sync_directory(path.parent)
        return True

    def seal(self, name, checksum=None):
        path = self.path / name
        try:
            size = path.stat().st_size
            return {"bytes": size, "checksum": checksum or checksums.of_file(path)}
        except FileNotFoundError:
            return None

    def hand_over(self, target):
        files = self.path / self.files
        if target.folder.is_dir():
            # A killed run has moved them; parts that did not know of it made some again.
            shutil.rmtree(files, ignore_errors=True)
        else:
            target.adopt(files)

    def same(self, name, partial):
        path = self.path / name
        return path.stat().st_size == partial.stat().st_size and (
            checksums.of_file(path) == checksums.of_file(partial)
        )


def _named(partial: Path, path: Path) -> bool:
    """Give a file its name; return False, and remove the file, if another writer's has it."""
    try:
        os.link(partial, path)  # of two writers that come here at once, one gets the name
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        if path.exists():
            return False
        partial.rename(path)
        return True
    finally:
        partial.unlink(missing_ok=True)
    return True


def name_of(workdir: Path) -> str:
    """Return the name of an upgrade's directory: the host that used it first, and its path there.

    It is kept in the directory, which may be mounted on another host after a kill.
    """
    place, name = Folder(workdir), "name.txt"
    if place.read(name) is None:
        place.publish_bytes(name, f"{socket.gethostname()}:{workdir.resolve()}".encode())
    return place.read(name).decode()


class Bucket(Place):
    """A prefix in an object store: ``s3://`` or ``gs://``.

    Credentials and endpoints are those of the environment (``AWS_ACCESS_KEY_ID``,
    ``AWS_ENDPOINT_URL`` …). Readers of Parquet skip names that begin with ``_``.
    """

    records, files = "_parts/", ""

    def __init__(self, uri: str, scratch: Path):
        import obstore
        from obstore.store import from_url

        self.name, self.scratch, self._client = uri.rstrip("/"), Path(scratch), obstore
        endpoint = os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT", "")
        plain = {"client_options": {"allow_http": True}} if endpoint.startswith("http://") else {}
        with self._errors(uri):
            self._store = from_url(self.name, **plain)

    def make(self) -> None:
        """Make the local folder of unfinished files; a bucket needs none."""
        self.scratch.mkdir(parents=True, exist_ok=True)

    def remove(self) -> None:
        """Remove the local folder; what is published stays."""
        shutil.rmtree(self.scratch, ignore_errors=True)

    @contextlib.contextmanager
    def _errors(self, name: str):
        """Convert the client's errors to UserError."""
        from obstore.exceptions import AlreadyExistsError, BaseError

        try:
            yield
        except (FileNotFoundError, AlreadyExistsError, UserError):
            raise
        except (BaseError, OSError, ValueError) as error:
            said = " ".join(str(error).split())[:300]
            raise UserError(f"{self.name}: {name}: {said}") from None

    def read(self, name):
        with self._errors(name):
            try:
                return self._client.get(self._store, name).bytes().to_bytes()
            except FileNotFoundError:
                return None

    def names(self):
        found = {}
        with self._errors(self.records):
            for page in self._client.list(self._store, self.records):
                for entry in page:
                    found[entry["path"]] = entry["size"], entry["last_modified"].timestamp()
        return found

    def publish(self, name, partial, again=False):
        from obstore.exceptions import AlreadyExistsError

        large = partial.stat().st_size > _ONE_PUT
        with self._errors(name):
            try:
                if large and not again and self.seal(name) is not None:
                    return False
                mode = "overwrite" if again or large else "create"
                self._client.put(self._store, name, partial, mode=mode, use_multipart=large)
                return True
            except AlreadyExistsError:
                return False
            finally:
                partial.unlink(missing_ok=True)

    def seal(self, name, checksum=None):
        with self._errors(name):
            try:
                found = self._client.head(self._store, name)
            except FileNotFoundError:
                return None
        return {"bytes": found["size"], "etag": found["e_tag"]}

    def prepare(self):
        with self._errors(self.name):
            for page in self._client.list(self._store, chunk_size=10):
                for entry in page:
                    if not entry["path"].startswith(("_parts/", "_meta.json")):
                        raise UserError(
                            f"{self.name} holds {entry['path']} already; nothing was overwritten"
                        )
        self.make()
        self.publish_bytes("_meta.json", b'{"state": "translating"}\n')

    def finished_by(self):
        found = self.read(_DONE)
        return None if found is None else found.decode()

    def claim(self, workdir):
        name = name_of(workdir)
        self.publish_bytes(_DONE, name.encode())
        theirs = self.finished_by()
        return None if theirs == name else theirs

    def hand_over(self, target):
        pass  # they have their final place

    def same(self, name, partial):
        if self.seal(name)["bytes"] != partial.stat().st_size:
            return False
        checksum = 0
        with self._errors(name):
            for chunk in self._client.get(self._store, name).stream():
                checksum = zlib.crc32(chunk, checksum)
        return checksums.text(checksum) == checksums.of_file(partial)
