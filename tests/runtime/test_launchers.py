"""The scripts that start fct_jax on a TPU pod and under SLURM, with stand-ins for the cloud."""

import os
import subprocess
import time

import pytest
import tiny_runs
from patience import LONG

TOOLS = tiny_runs.REPOSITORY / "tools"
TRAIN = ["train", "--config", "configs/a.py", "--workdir=/shared/my runs", "--config.x='a $HOME'"]


def run(script, *arguments, path=None):
    environment = {
        **os.environ,
        "PATH": f"{path}:{os.environ['PATH']}" if path else "/usr/bin:/bin",
    }
    return subprocess.run(
        ["bash", TOOLS / script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=LONG,
    )


def stand_in(folder, name, text):
    """Put a stand-in program on the path."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text("#!/bin/bash\n" + text)
    file.chmod(0o755)
    return folder


def on_pod(*arguments, path=None):
    return run("launch_tpu_pod.sh", "--name=pod", "--zone", "z", *arguments, path=path)


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "no action; known: setup, check, devices"),
        (["--zone=z", "--dry_run", "log"], "--name is missing"),
        (["--name=p", "--dry_run", "log"], "--zone is missing"),
        (["--name"], "--name needs a value"),
        (["--nmae=p", "log"], "unknown flag --nmae=p"),
        (["--name=p", "--zone=z", "--dry_run", "begin"], "unknown action begin"),
        (["--name=p", "--zone=z", "--dry_run", "run", "trian"], "unknown stage trian"),
        (["--name=p", "--zone=z", "--dry_run", "run", "train"], "--config is missing"),
        (["--name=p", "--zone=z", "--dry_run", *["run", "train", "--config=a"]],
         "--workdir is missing"),
        (["--name=p", "--zone=z", "--folder=a b", "--dry_run", "log"], "must be a plain path"),
        (["--name=p", "--zone=z", "--dry_run", "stop", "now"], "no further arguments: now"),
    ],
)  # fmt: skip
def test_mistake_is_one_line(arguments, said):
    done = run("launch_tpu_pod.sh", *arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert said in done.stderr


def test_help_names_every_action():
    done = run("launch_tpu_pod.sh", "--help")
    assert done.returncode == 0
    for action in ("setup", "check", "devices", "run", "start", "log", "stop", "--dry_run"):
        assert f"  {action}" in done.stdout


def test_dry_run_prints_commands_and_runs_none(tmp_path):
    path = stand_in(tmp_path / "bin", "gcloud", "touch $(dirname $0)/called\n")
    for action in (
        ["setup"],
        ["check"],
        ["devices"],
        ["run", *TRAIN],
        ["start", *TRAIN],
        ["log"],
        ["stop"],
    ):
        done = on_pod("--project=q", "--dry_run", *action, path=path)
        assert done.returncode == 0, done.stderr
        for line in done.stdout.splitlines():
            assert line.startswith("gcloud compute tpus tpu-vm ")
            assert line.strip().endswith("--zone=z --project=q")
    assert not (path / "called").exists()


def test_arguments_reach_the_hosts_as_they_were_given(tmp_path):
    """A stand-in for gcloud runs the text of --command here; one for Python shows its arguments."""
    gcloud = 'for a in "$@"; do case "$a" in --command=*) bash -c "${a#--command=}";; esac; done\n'
    path = stand_in(tmp_path / "bin", "gcloud", gcloud)
    stand_in(tmp_path / ".venv" / "bin", "python", "printf '%s\\n' \"$@\"\n")
    done = on_pod(f"--folder={tmp_path}", "run", *TRAIN, path=path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["-u", "-m", "fct_jax.train", "--distributed", *TRAIN[1:]]


def test_check_asks_every_host(tmp_path):
    gcloud = 'for a in "$@"; do case "$a" in --command=*) bash -c "${a#--command=}";; esac; done\n'
    path = stand_in(tmp_path / "bin", "gcloud", gcloud)
    stand_in(tmp_path / ".venv" / "bin", "python", "printf '%s\\n' \"$@\"\n")
    doctor = ["-m", "fct_jax", "doctor", "cluster"]
    for flags in ([], ["--folder=/my runs"]):
        done = on_pod(f"--folder={tmp_path}", "check", *flags, path=path)
        assert done.stdout.splitlines() == [*doctor, *flags]


def said_once(text, folder, path):
    """Return the log of a started program once it contains the text, or after a long time."""
    deadline = time.monotonic() + LONG
    while True:
        said = on_pod(f"--folder={folder}", "log", path=path).stdout
        if text in said or time.monotonic() > deadline:
            return said
        time.sleep(0.05)


def test_started_in_the_background_and_stopped(tmp_path):
    gcloud = 'for a in "$@"; do case "$a" in --command=*) bash -c "${a#--command=}";; esac; done\n'
    path = stand_in(tmp_path / "bin", "gcloud", gcloud)
    stand_in(
        tmp_path / ".venv" / "bin",
        "python",
        "trap 'echo saved; exit 0' TERM\necho $3\nwhile :; do sleep 0.05; done",
    )
    assert on_pod(f"--folder={tmp_path}", "start", *TRAIN, path=path).returncode == 0
    pid = int((tmp_path / "start.pid").read_text())
    try:
        assert said_once("fct_jax.train\n", tmp_path, path) == "fct_jax.train\n"
        assert on_pod(f"--folder={tmp_path}", "stop", path=path).returncode == 0
        assert said_once("saved\n", tmp_path, path) == "fct_jax.train\nsaved\n"
    finally:
        subprocess.run(["kill", "-KILL", str(pid)], capture_output=True, timeout=LONG)


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("status", [0, 143])
@pytest.mark.parametrize("form", ["--workdir={}", "--workdir {}"])
def test_slurm_job_is_queued_again_until_the_model_is_there(tmp_path, ended, status, form):
    path = stand_in(tmp_path / "bin", "srun", f'echo srun "$@" > {tmp_path}/srun; exit {status}\n')
    stand_in(path, "scontrol", f'echo "$@" > {tmp_path}/scontrol\n')
    run_folder = tmp_path / "run"
    if ended:
        (run_folder / "model").mkdir(parents=True)
    os.environ["SLURM_JOB_ID"] = "17"
    try:
        done = run("slurm_train.sbatch", *form.format(run_folder).split(), "--config=a", path=path)
    finally:
        del os.environ["SLURM_JOB_ID"]
    assert done.returncode == 0, done.stderr
    assert "-m fct_jax.train --distributed --workdir" in (tmp_path / "srun").read_text()
    assert (tmp_path / "scontrol").exists() != ended
    if not ended:
        assert (tmp_path / "scontrol").read_text() == "requeue 17\n"


def test_slurm_job_with_an_error_is_not_queued_again(tmp_path):
    path = stand_in(tmp_path / "bin", "srun", "exit 1\n")
    stand_in(path, "scontrol", f"touch {tmp_path}/requeued\n")
    done = run("slurm_train.sbatch", f"--workdir={tmp_path / 'run'}", "--config=a", path=path)
    assert done.returncode == 1 and not (tmp_path / "requeued").exists()


def test_slurm_job_without_workdir():
    done = run("slurm_train.sbatch", "--config=a")
    assert done.returncode == 1 and "--workdir is missing" in done.stderr
