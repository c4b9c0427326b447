"""Sets made in shards: by whom, in how many runs and on how many devices makes no difference."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import embed_together
import kill_embed
import numpy as np
import pytest
import tiny_models
import tiny_runs
from patience import LONG
from ports import free_port

from fct_jax.embed.command import embed
from fct_jax.embed.images import embed_images
from fct_jax.embed.transform import transform_set
from fct_jax.errors import UserError
from fct_jax.frozen.callable_model import CallableModel
from fct_jax.frozen.model import load_model
from fct_jax.runtime import processes
from fct_jax.storage import partial as partials
from fct_jax.storage import rows as columns
from fct_jax.storage.embedding_set import EmbeddingSet

TESTS = tiny_runs.REPOSITORY / "tests" / "helpers"
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parents[1]}"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Make the runs "backbone" and "transformation", and "old", a set for the latter."""
    folder = tmp_path_factory.mktemp("runs")
    tiny_models.backbone_run(folder / "backbone")
    tiny_models.transformation_run(folder / "transformation")
    vectors = np.random.default_rng(0).standard_normal((797, 6)).astype(np.float32)
    EmbeddingSet.of(vectors, meta={"fingerprint": "old"}).write(folder / "old")
    return folder


def contents(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def pixels(source, out, **options):
    """Embed the digits as pixels, whose embeddings are obvious, in five shards."""
    sizes = {"batch_size": 40, "shard_size": 160}
    return embed_images(CallableModel("tiny_models:pixels"), source, out, **{**sizes, **options})


def hidden(folder) -> list[str]:
    """Return the names of hidden files and folders beside the sets."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_shards_are_described_and_change_nothing_else(runs, tmp_path):
    model, source = load_model(runs / "backbone"), tiny_models.digits()
    embed_images(model, source, tmp_path / "whole", batch_size=40)
    # Shards are rounded up to four whole batches, so that batches are cut at the same rows.
    embed_images(model, source, tmp_path / "shards", batch_size=40, shard_size=121)
    whole, shards = contents(tmp_path / "whole"), contents(tmp_path / "shards")
    metas = [json.loads(files.pop("meta.json")) for files in (whole, shards)]
    assert whole == shards
    parts = metas[1].pop("shards")
    assert [(p["start"], p["count"]) for p in parts] == [
        *((start, 160) for start in range(0, 640, 160)),
        (640, 157),
    ]
    assert [p["count"] for p in metas[0].pop("shards")] == [797]
    assert metas[0] == metas[1]
    assert hidden(tmp_path) == []


def test_transformed_in_shards(runs, tmp_path):
    transformer, old = load_model(runs / "transformation"), EmbeddingSet.read(runs / "old")
    made = transform_set(transformer, old, None, tmp_path / "moved", 40, 160)
    vectors, uncertainty = transformer.transform(old.vectors, batch_size=40)
    np.testing.assert_array_equal(made.vectors, vectors)
    np.testing.assert_array_equal(made.uncertainty, uncertainty)
    assert [p["start"] for p in made.meta["shards"]] == [0, 160, 320, 480, 640]


def test_fct_has_no_uncertainty(tmp_path):
    transformer = load_model(tiny_models.transformation_run(tmp_path / "run", "fct"))
    old = EmbeddingSet.of(np.ones((7, 6), np.float32))
    assert transform_set(transformer, old, None, tmp_path / "moved").uncertainty is None
    assert not (tmp_path / "moved" / "uncertainty.npy").exists()


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("kind, seeds", [("images", (3,)), ("vectors", (11,))])
def test_killed_at_any_moment(runs, tmp_path, kind, seeds):
    """A killed writer resumes, keeps its shards, and ends with the same set."""
    for name in ("old", "transformation"):
        (tmp_path / name).symlink_to(runs / name)
    kill_embed.embed(kind, tmp_path, tmp_path / "whole")
    done = subprocess.run(
        [sys.executable, TESTS / "kill_embed.py", kind, tmp_path, *map(str, seeds)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    assert done.returncode == 0, done.stderr
    killed = [int(line) for line in done.stdout.split()]
    assert len(killed) == len(seeds) and sum(killed) >= 2
    for seed in seeds:
        assert contents(tmp_path / str(seed)) == contents(tmp_path / "whole")
        with pytest.raises(UserError, match="exists already"):
            kill_embed.embed(kind, tmp_path, tmp_path / str(seed))
    assert hidden(tmp_path) == []


@pytest.mark.slow
@pytest.mark.multiprocess
def test_command_killed_and_given_again(tmp_path, monkeypatch):
    """A live run cannot be disturbed; a killed one is taken over."""
    config = embed_together.embed_config(tmp_path)
    config.class_statistics = False
    config.model, config.data.name = "tiny_models:slow_pixels", "digits"
    out = tmp_path / "set"
    flags = [f"--config.{k}={config[k]}" for k in ("model", "batch_size", "shard_size")]
    command = [sys.executable, "-m", "fct_jax.embed", *flags]
    child = subprocess.Popen(
        [*command, "--config.data.name=digits", f"--workdir={out}"],
        cwd=tiny_runs.REPOSITORY,
        env={**ENVIRONMENT, "BATCHES": "16"},  # of 20; the model's fingerprint takes some more
        stderr=subprocess.PIPE,
    )
    try:
        finished = tmp_path / ".set.partial" / "shards" / "00001.json"
        end = time.monotonic() + LONG
        while not finished.exists():
            assert child.poll() is None and time.monotonic() < end, child.communicate(timeout=5)
            time.sleep(0.02)
        with pytest.raises(UserError, match="another run is making .*set; wait"):
            embed(config, out)
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate(timeout=LONG)
    assert not out.exists()
    done = len(list(finished.parent.iterdir()))
    seen = []

    def counting(images):
        seen.append(len(images))
        return tiny_models.pixels(images)

    monkeypatch.setattr(tiny_models, "slow_pixels", counting)
    counting.image_size = 8
    made = embed(config, out)
    # No finished shard is made again; a few more images are for the model's fingerprint.
    left = 797 - done * config.shard_size
    assert done >= 2 and left <= sum(seen) < left + config.shard_size
    np.testing.assert_array_equal(
        made.vectors, pixels(tiny_models.digits(), tmp_path / "p").vectors
    )
    assert hidden(tmp_path) == []


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_of_four_devices(runs, tmp_path):
    """They share a set that one process began, and make others, all as one device would."""
    (tmp_path / "alone").mkdir()
    embed_together.work(runs, tmp_path / "alone")
    folder = tmp_path / "shared"
    shutil.copytree(runs, folder)
    began = folder / "together" / "images"
    with pytest.MonkeyPatch.context() as patch:
        write = partials.write_synced

        def stop_at_three(path, data):
            if path.name == "00003.json":
                raise KeyboardInterrupt
            write(path, data)

        patch.setattr(partials, "write_synced", stop_at_three)
        with pytest.raises(KeyboardInterrupt):
            embed(embed_together.embed_config(folder), began)
    assert not began.exists()
    port = free_port()
    children = [
        subprocess.Popen(
            [sys.executable, TESTS / "embed_together.py", folder, str(port), str(process), "2"],
            env={**ENVIRONMENT, "JAX_NUM_CPU_DEVICES": "4"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    try:
        said = [child.communicate(timeout=LONG) for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0, 0], said
    assert "3 of 5 shards were finished before" in said[0][0]
    together, alone = contents(folder / "together"), contents(tmp_path / "alone")
    assert together.keys() == alone.keys()
    for name, content in together.items():
        assert content == alone[name], name


def test_skipped_images_across_shards(tmp_path, capsys):
    bad = [0, 159, 160, *range(320, 480), 796]  # shard 2 has no image at all
    source = tiny_models.Patchy(tiny_models.digits(), bad)
    made = pixels(source, tmp_path / "set", on_error="skip", num_classes=10)
    assert "164 of 797 images were skipped" in capsys.readouterr().out
    kept = np.delete(np.arange(797), bad)
    whole = pixels(tiny_models.digits(), tmp_path / "whole")
    for name in ("vectors", "ids", "labels"):
        np.testing.assert_array_equal(getattr(made, name), getattr(whole, name)[kept])
    assert made.meta["skipped"] == 164
    parts = [(part["start"], part["count"]) for part in made.meta["shards"]]
    assert parts == [(0, 158), (158, 159), (317, 160), (477, 156)]
    EmbeddingSet.read(tmp_path / "set")
    assert (tmp_path / "set" / "class_statistics_angle.npz").is_file()


def test_no_image_at_all(tmp_path):
    source = tiny_models.Patchy(tiny_models.digits(), range(797))
    with pytest.raises(UserError, match="no image of 797 could be read"):
        pixels(source, tmp_path / "set", on_error="skip")
    assert hidden(tmp_path) == []


def test_a_run_that_failed_goes_on(tmp_path, capsys):
    """Finished shards are kept and not read again; if there are none, nothing stays behind."""
    source = tiny_models.Patchy(tiny_models.digits(), [600])
    with pytest.raises(UserError, match="image 600 is broken"):
        pixels(source, tmp_path / "set")
    assert hidden(tmp_path) == [".set.partial"]
    assert "3 of 5 shards are finished; the same command resumes" in capsys.readouterr().out
    source.bad, source.reads[:] = {0}, []
    made = pixels(source, tmp_path / "set", workers=0)
    assert min(source.reads) == 480
    np.testing.assert_array_equal(
        made.vectors, pixels(tiny_models.digits(), tmp_path / "p").vectors
    )
    with pytest.raises(UserError, match="image 0 is broken"):
        pixels(source, tmp_path / "other")
    assert hidden(tmp_path) == []


def test_shards_of_two_plans_are_not_mixed(tmp_path):
    source = tiny_models.Patchy(tiny_models.digits(), [600])
    meta = {"data": {"name": "digits", "on_error": "raise"}}
    with pytest.raises(UserError, match="image 600 is broken"):
        pixels(source, tmp_path / "set", meta=meta)
    for changes, message in (
        ({"meta": {"data": {"name": "other"}}}, "data.name: digits there, other now"),
        ({"batch_size": 20}, "batch_size: 40 there, 20 now"),
        ({"shard_size": 200}, "shard_size: 160 there, 200 now"),
        ({"view": 1}, "view: None there, 1 now"),
    ):
        with pytest.raises(UserError, match=rf"3 finished shards of .* \({message}\); remove it"):
            pixels(source, tmp_path / "set", **{"meta": meta, **changes})
    slow = CallableModel("tiny_models:slow_pixels")
    with pytest.raises(UserError, match=r"3 finished shards of another embedding \(fingerprint: "):
        embed_images(slow, source, tmp_path / "set", meta=meta, batch_size=40, shard_size=160)
    # The way in which images are read may change in between.
    meta = {"data": {"name": "digits", "on_error": "skip"}}
    assert len(pixels(source, tmp_path / "set", meta=meta, on_error="skip")) == 796


def test_rows_that_changed_on_the_disk_are_made_again(tmp_path):
    source = tiny_models.Patchy(tiny_models.digits(), [600])
    with pytest.raises(UserError, match="image 600 is broken"):
        pixels(source, tmp_path / "set")
    vectors = np.load(tmp_path / ".set.partial" / "set" / "vectors.npy", mmap_mode="r+")
    vectors[200] += 1
    vectors.flush()
    source.bad = ()
    with pytest.raises(UserError, match=r"damaged in 1 shards, first in 1 \(rows 160–319\)"):
        pixels(source, tmp_path / "set")
    source.reads.clear()
    made = pixels(source, tmp_path / "set")
    assert sorted(source.reads) == list(range(160, 320))
    np.testing.assert_array_equal(
        made.vectors, pixels(tiny_models.digits(), tmp_path / "p").vectors
    )


def test_what_a_killed_run_left_beside_its_set_goes(tmp_path):
    config = embed_together.embed_config(tmp_path)
    config.class_statistics = False
    config.model, config.data.name = "tiny_models:pixels", "digits"
    embed(config, tmp_path / "set")
    (tmp_path / ".set.partial" / "shards").mkdir(parents=True)
    (tmp_path / ".set.lock").touch()
    for out in (tmp_path / "set", tmp_path, "/", "."):
        with pytest.raises(UserError, match="exists already; nothing was overwritten"):
            embed(config, out)
    assert hidden(tmp_path) == []


def test_processes_must_share_a_folder_and_a_plan(tmp_path, monkeypatch):
    def begin(count):
        return partials.PartialSet(tmp_path / "set", {"model": "a"}, count, {"vectors": (2,)}, 4)

    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "from_writer", lambda function, name: function())
    with begin(8) as first:
        assert first.todo == [0, 1]
        monkeypatch.setattr(processes, "is_writer", lambda: False)
        monkeypatch.setattr(processes, "index", lambda: 1)
        monkeypatch.setattr(processes, "from_writer", lambda function, name: [0, 1])
        with begin(8) as second:
            assert second.todo == [0, 1]
        with pytest.raises(UserError, match=r"another embedding than 1 \(rows: 8 there, 9 now\)"):
            begin(9).__enter__()
        with pytest.raises(UserError, match="process 1 does not see .*all need one shared folder"):
            partials.wait_for(tmp_path / "elsewhere", seconds=0.2)
        monkeypatch.undo()
    assert hidden(tmp_path) == []


def test_a_full_disk_is_said_before_the_work(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match="0.0 GB free, but the embeddings need 0.0 GB"):
        pixels(tiny_models.digits(), tmp_path / "set")
    assert hidden(tmp_path) == []


def test_a_disk_that_fills_up(tmp_path, monkeypatch):
    """A full disk gives one line at any moment; once there is room, the same call resumes."""
    pixels(tiny_models.digits(), tmp_path / "whole")
    fsync, failures = os.fsync, 0
    for moment in range(0, 40, 3):
        left = [moment]

        def full(file, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            fsync(file)

        out = tmp_path / str(moment)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            try:
                pixels(tiny_models.digits(), out)
            except UserError as error:
                assert "No space left on device; fix this" in str(error)
                failures += 1
        if not out.exists():
            pixels(tiny_models.digits(), out)
        assert contents(out) == contents(tmp_path / "whole")
    assert failures > 5
    assert hidden(tmp_path) == []


def test_no_byte_more_fits(tmp_path, monkeypatch):
    columns.lay_out(tmp_path, {"vectors": (2,)}, 5)
    opened = Path.open

    def full(path, mode="r"):
        return opened(Path("/dev/full") if mode == "r+b" else path, mode)

    monkeypatch.setattr(Path, "open", full)
    with (
        pytest.raises(UserError, match="vectors.npy: No space left on device"),
        columns.Columns(tmp_path, {"vectors": (2,)}) as files,
    ):
        files.write("vectors", 3, np.ones((1, 2), np.float32))
        files.sync()


def test_sizes_are_checked(tmp_path):
    for name in ("batch_size", "shard_size"):
        with pytest.raises(UserError, match=f"config.{name} must be at least 1, not 0"):
            pixels(tiny_models.digits(), tmp_path / "set", **{name: 0})
