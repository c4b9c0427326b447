"""A Ray cluster of two nodes with logical GPUs: cards, Ray's client, and the loss of a node."""

import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import tiny_galleries as tiny
from patience import LONG
from ports import free_port
from ray_driver import HELPERS, Driver, environment

from fct_jax.upgrade.migration.upgrade import Upgrade

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]
COUNT = 1500  # rows
QUICK = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Start two nodes with a CPU each, the first with two logical GPUs and Ray's client."""
    pytest.importorskip("ray", reason="Ray: pip install 'fct_jax[ray]'")
    pytest.importorskip("grpc", reason="Ray's client: pip install 'ray[client]'")
    folder = tmp_path_factory.mktemp("cluster")
    port = free_port()  # of Ray's client
    script = f"""
import sys
from ray.cluster_utils import Cluster
both = {{"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}}
head = {{"num_gpus": 2, "ray_client_server_port": {port}, "_system_config": {QUICK}, **both}}
cluster = Cluster(initialize_head=True, head_node_args=head)
node = cluster.add_node(**both)
print(cluster.address, node.all_processes["raylet"][0].process.pid, flush=True)
sys.stdin.read()
cluster.shutdown()
"""
    log = (folder / "cluster.log").open("w+")
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script],
        env=environment(
            MEET=str(folder),
            SLOW="0.2",
            RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S="50",  # a client's server, else 30 s
            # What gRPC restarts in a fork, before it becomes a client's server, crashed at times.
            GRPC_ENABLE_FORK_SUPPORT="0",
            RAY_DEDUP_LOGS="0",
        ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    said = process.stdout.readline().split()
    assert len(said) == 2, (folder / "cluster.log").read_text()
    yield types.SimpleNamespace(
        address=said[0], client=f"ray://127.0.0.1:{port}", raylet=int(said[1]), folder=folder
    )
    process.communicate(timeout=LONG)
    log.close()


def gallery(tmp_path, mapping, dtype="float32") -> tuple[list, Path]:
    """Write a gallery; return the words that translate it, and one process's translation."""
    ids, old, _ = tiny.vectors(COUNT)
    old[77] = np.nan
    path = tmp_path / "old"
    path.mkdir()
    tiny.write_parquet(path, ids, old, sizes=(70, 0, 130, *[65] * 20))
    Upgrade(tmp_path / "one").apply(mapping, path, unchecked=True, batch_size=16, dtype=dtype)
    words = ["--map", mapping, "--gallery", path, "--batch-size", "16", "--dtype", dtype]
    return [*words, "--unchecked", "--engine", "ray"], tmp_path / "one" / "gallery"


def test_workers_share_the_cards(cluster):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", HELPERS / "ray_gpus.py", cluster.address],
        capture_output=True,
        text=True,
        timeout=LONG,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    whole, halves, large, many, missing = json.loads(done.stdout)
    assert sorted(card for card, _ in whole) == ["0", "1"]
    assert sorted(card for card, _ in halves) == ["0", "0", "1", "1"]
    assert len({process for _, process in halves}) == 4
    cluster_has = "do not fit on the Ray cluster, whose nodes have GPUs: 2, 0; so many workers fit:"
    assert missing.startswith("unknown function of ray_gpus: 'sen'; did you mean 'seen'?")
    assert large == f"1 workers with GPUs: 4 {cluster_has} 0"
    assert many == f"3 workers with GPUs: 1 {cluster_has} 2"


def test_a_node_is_killed(cluster, tmp_path):
    words, expected = gallery(tmp_path, "slow_model:translate")
    up = tmp_path / "up"
    driver = Driver(tmp_path / "log", up, *words, "--address", cluster.address, "--workers", "2")

    def pieces():
        return len(list((up / "parts").glob("piece-*.json")))

    # The nodes have a CPU each, so that workers that have met are on both.
    driver.until(lambda: len(list(cluster.folder.glob("translate-*"))) == 2 and pieces() > 1)
    assert 1 < pieces() < 20
    os.kill(cluster.raylet, signal.SIGKILL)
    driver.done()
    assert tiny.tree(up / "gallery") == tiny.tree(expected)


@pytest.mark.parametrize(("address", "dtype"), [("client", "int8"), ("address", "binary")])
def test_bytes_of_one_process(cluster, tmp_path, address, dtype):
    """By Ray's client, and in types whose scales the workers take from the layout."""
    matrix = np.random.default_rng(4).standard_normal((tiny.OLD_DIM, 8)).astype(np.float32)
    tiny.plain_map(matrix=matrix, known=False).save(tmp_path / "map")
    words, expected = gallery(tmp_path, str(tmp_path / "map"), dtype)
    up = tmp_path / "up"
    where = getattr(cluster, address)
    Driver(tmp_path / "log", up, *words, "--address", where, "--workers", "1").done()
    assert tiny.tree(up / "gallery") == tiny.tree(expected)
