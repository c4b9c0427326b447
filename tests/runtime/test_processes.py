"""Processes find each other, agree, wait for one another, and end together; no devices needed."""

import textwrap

import cluster
import pytest
from patience import LONG
from ports import free_port

from fct_jax.errors import UserError
from fct_jax.runtime import processes


def program(folder, text):
    """Write a script that begins by joining as process ``sys.argv[2]`` of 2."""
    path = folder / "program.py"
    start = """
        import sys
        from fct_jax.runtime import processes
        from fct_jax.errors import UserError
        index = int(sys.argv[2])
        processes.start(f"localhost:{sys.argv[1]}", index, 2, timeout=1200)
    """
    path.write_text(textwrap.dedent(start) + textwrap.dedent(text))
    port = free_port()
    return lambda index: [path, port, index]


@pytest.mark.multiprocess
def test_agreement(tmp_path):
    """Values travel, the writer's error reaches all, and no process passes a barrier too early."""
    text = """
        assert (processes.index(), processes.count()) == (index, 2)
        for turn in range(2):
            assert processes.gather([index, turn], "g") == [[0, turn], [1, turn]]
            assert processes.from_writer(lambda: {"by": index, "n": turn}, "w") == {
                "by": 0, "n": turn}
        def fails():
            raise UserError(f"process {index} cannot")
        try:
            processes.from_writer(fails, "w")
        except UserError as error:
            print(error)
        import pathlib, time
        mark = pathlib.Path(sys.argv[0]).with_name("mark")
        if index == 1:
            time.sleep(0.5)
            mark.touch()
        processes.barrier("b")
        assert mark.exists()
        processes.say("only one says this")
        processes.barrier("said")
        processes.end_all("enough") if index == 1 else processes.barrier("never")
    """
    codes, said = cluster.run(program(tmp_path, text), 2, tmp_path / "logs", timeout=LONG)
    assert codes == [1, 1], said
    assert all("process 0 cannot" in text for text in said)
    assert ["only one says this" in text for text in said] == [True, False]
    assert "error: process 1 ended: enough" in said[0]


@pytest.mark.multiprocess
def test_writer_that_fails_ends_the_others(tmp_path):
    text = """
        processes.end_all("disk full") if index == 0 else processes.barrier("never")
    """
    codes, said = cluster.run(program(tmp_path, text), 2, tmp_path / "logs", timeout=LONG)
    assert codes == [1, 1], said
    assert "error: process 0 ended: disk full" in said[1]


def test_alone_everything_is_immediate(capsys):
    processes.barrier("a")
    processes.say("hello")
    processes.end_all("nothing to end")
    assert processes.gather(3, "a") == [3]
    assert processes.from_writer(lambda: 4, "a") == 4
    assert (processes.index(), processes.count(), processes.is_writer()) == (0, 1, True)
    assert capsys.readouterr().out == "hello\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("localhost:1", 0, None), "go together; missing: --num_processes"),
        ((None, 0, None), "missing: --coordinator, --num_processes"),
        (("localhost", 0, 2), "--coordinator=localhost is not HOST:PORT"),
        (("localhost:99999", 0, 2), "--coordinator=localhost:99999 is not HOST:PORT"),
        (("localhost:1", 2, 2), r"--process_id=2 must be in 0..1"),
        (("localhost:1", -1, 2), r"--process_id=-1 must be in 0..1"),
        (("localhost:1", 0, 0), "--num_processes=0 must be at least 1"),
    ],
)
def test_nonsense_is_named(arguments, message):
    with pytest.raises(UserError, match=message):
        processes.start(*arguments)


def test_no_cluster_found(tmp_path):
    """The test runs in its own process, since nothing may have used a device before."""
    text = """
        from fct_jax.runtime import processes
        from fct_jax.errors import UserError
        try:
            processes.start()
        except UserError as error:
            print(error)
    """
    path = tmp_path / "alone.py"
    path.write_text(textwrap.dedent(text))
    codes, said = cluster.run(lambda index: [path], 1, tmp_path / "logs", timeout=LONG)
    assert codes == [0]
    assert "found no cluster" in said[0] and "--coordinator=HOST:PORT" in said[0]


def test_place_under_slurm(monkeypatch):
    """As srun sets it: one process per GPU, the coordinator on the first node."""
    for name, value in {
        "SLURM_JOB_ID": "17", "SLURM_STEP_NODELIST": "gpu[07-08],gpu11", "SLURM_NTASKS": "6",
        "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_NODES": "3",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    port = 65536 - 4096 + 17
    assert processes.discover() == ((f"gpu07:{port}", 3, 6), [1])
    monkeypatch.setenv("JAX_COORDINATOR_PORT", "1234")
    monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", "4,5")
    assert processes.discover() == (("gpu07:1234", 3, 6), [4, 5])
    assert processes.discover("h:1", 0, 2) == (("h:1", 0, 2), [4, 5])


def test_place_on_a_tpu_pod_of_gke(monkeypatch):
    from jax._src.clusters import cloud_tpu_cluster, cluster

    for module in (cloud_tpu_cluster, cluster):
        monkeypatch.setattr(module, "running_in_cloud_tpu_vm", True)
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost,pod-1,pod-2")
    monkeypatch.setenv("TPU_WORKER_ID", "2")
    monkeypatch.setenv("MEGASCALE_COORDINATOR_ADDRESS", "")
    monkeypatch.setenv("MEGASCALE_NUM_SLICES", "1")
    monkeypatch.setenv("MEGASCALE_SLICE_ID", "0")
    assert processes.discover(timeout=1) == (("localhost:8482", 2, 3), None)


@pytest.mark.parametrize(
    "index, message", [(0, "not all of 2 processes came to"), (1, "nobody listens at")]
)
def test_others_that_do_not_come(tmp_path, index, message):
    path = tmp_path / "alone.py"
    path.write_text(
        "import sys\nfrom fct_jax.runtime import processes\n"
        "processes.start(f'localhost:{sys.argv[1]}', int(sys.argv[2]), 2, timeout=2)\n"
    )
    arguments = [path, free_port(), index]
    codes, said = cluster.run(lambda _: arguments, 1, tmp_path / "logs", timeout=LONG)
    assert codes == [1]
    assert message in said[0] and "within 2 s" in said[0], said[0]


def command(tmp_path, *flags):
    config = ["--config=configs/digits_backbone_old.py", f"--workdir={tmp_path / 'run'}"]
    arguments = ["-m", "fct_jax.train", *config, *flags]
    return cluster.run(lambda _: arguments, 1, tmp_path / "logs", timeout=LONG)


def test_flags_of_a_command(tmp_path):
    codes, said = command(tmp_path, "--help")
    assert codes == [0]
    for flag in ("--[no]distributed", "--coordinator", "--process_id", "--num_processes"):
        assert flag in said[0]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--process_id=1"], "missing: --coordinator, --num_processes"),
        (["--distributed"], "--distributed found no cluster"),
        (["--process_id=one"], "process_id"),
    ],
)
def test_wrong_flags_are_one_line(tmp_path, flags, message):
    codes, said = command(tmp_path, *flags)
    assert codes == [1]
    assert said[0].startswith("error: ") and len(said[0].splitlines()) == 1
    assert message in said[0]
    assert not (tmp_path / "run").exists()
