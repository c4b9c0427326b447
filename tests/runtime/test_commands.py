"""The commands as a user types them: one line for every mistake, help that helps."""

import subprocess
import sys

import pytest
import tiny_runs
from patience import LONG

CONFIG = "configs/digits_backbone_old.py"


def run(module, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"fct_jax.{module}", *map(str, arguments)],
        cwd=tiny_runs.REPOSITORY,
        capture_output=True,
        text=True,
        timeout=LONG,
    )


@pytest.mark.parametrize("module", ["train", "embed", "evaluate"])
def test_help_shows_an_example_and_the_flags(module):
    done = run(module, "--help")
    assert done.returncode == 0
    assert f"python -m fct_jax.{module} --" in done.stdout
    assert "--workdir" in done.stdout
    assert done.stderr == ""


@pytest.mark.slow
def test_a_packaged_config_by_its_name(tmp_path):
    old = f"--config.old={tmp_path}/old"  # the config's own is there after the quickstart
    done = run("train", "--config", "digits_fct", old, "--workdir", tmp_path / "run")
    assert done.returncode == 1 and f"config.old={tmp_path}/old does not exist" in done.stderr, (
        done.stderr
    )
    done = run("train", "--config=digits_ftc", "--workdir", tmp_path / "run")
    assert done.stderr == "error: no config file digits_ftc; did you mean digits_fct?\n"


@pytest.mark.parametrize(
    "text, said",
    [
        ("x = 1\n", "has no function get_config()"),
        ("def get_config(:\n", "is not Python: invalid syntax"),
        ("import no_such_module\n", "cannot be run: ModuleNotFoundError: No module named"),
        ("def get_config():\n    return 1 / 0\n", "failed: ZeroDivisionError: division by zero"),
    ],
)
def test_a_config_file_that_cannot_be_used(tmp_path, text, said):
    (tmp_path / "mine.py").write_text(text)
    done = run("train", "--config", tmp_path / "mine.py", "--workdir", tmp_path / "run")
    assert done.returncode == 1 and said in done.stderr
    assert len(done.stderr.splitlines()) == 1 and str(tmp_path / "mine.py") in done.stderr


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--config", CONFIG], "--workdir"),
        (["--config", "configs/digit_backbone_old.py", "--workdir", "{}"],
         f"no config file configs/digit_backbone_old.py; did you mean {CONFIG}?"),
        (["--config", CONFIG, "--workdri", "{}"], "workdir"),
        (["--config", CONFIG, "--workdir", "{}", "--config.optimizer.l=0.5"],
         "unknown config key --config.optimizer.l; did you mean 'lr'?"),
        (["--config", CONFIG, "--workdir", "{}", "--config.epoch=5"],
         "unknown config key --config.epoch; did you mean 'epochs'?"),
        (["--config", CONFIG, "--workdir", "{}", "--config.epochs=many"], "many"),
        (["--config", CONFIG, "--workdir", "{}", "extra"], "'extra' is not a flag"),
        (["--config", CONFIG], "--workdir is missing"),
        pytest.param(["--config", CONFIG, "--workdir", "{}", "--config.data.name=digit"],
         "unknown data set 'digit'; did you mean 'digits'?", marks=pytest.mark.slow),
        (["--config", CONFIG, "--workdir", "{}", "--config.data.name=folder",
          "--config.data.dir=/no/such/place"], "/no/such/place"),
    ],
)  # fmt: skip
def test_mistake_is_one_line_and_not_zero(tmp_path, arguments, said):
    done = run("train", *(a.format(tmp_path / "run") for a in arguments))
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    assert said in lines[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_config_file_with_an_unknown_key(tmp_path):
    (tmp_path / "configs").mkdir()
    file = tmp_path / "configs" / "mine.py"
    file.write_text(
        "from fct_jax import config\n"
        "def get_config():\n"
        "    c = config.backbone()\n"
        "    c.optimizer.momentun = 0.9\n"
        "    return c\n"
    )
    done = run("train", "--config", file, "--workdir", tmp_path / "run")
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "error: unknown config key config.optimizer.momentun; did you mean 'momentum'?"
    )


@pytest.mark.slow
def test_embed_and_evaluate_name_what_is_missing(tmp_path):
    done = run("embed", "--workdir", tmp_path / "set",
               "--config.model", tmp_path / "no_run")  # fmt: skip
    assert done.returncode == 1 and "no exported model in" in done.stderr
    done = run("evaluate", "--config", "configs/digits_evaluate.py", "--workdir", tmp_path / "r",
               "--config.old", tmp_path / "no_run")  # fmt: skip
    assert done.returncode == 1
    assert "does not exist" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_tensorflow_and_pytorch_are_never_imported():
    code = (
        "import sys, fct_jax, fct_jax.train.loop, fct_jax.embed.command, "
        "fct_jax.evaluate.command, fct_jax.data.tfds\n"
        "assert not {name.split('.')[0] for name in sys.modules} & {'tensorflow', 'torch'}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tiny_runs.REPOSITORY, timeout=LONG)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "work", "said"),
    [
        ("train", "loop", "the same command resumes from the last checkpoint"),
        (
            "evaluate",
            "command",
            "finished embeddings are kept, and the same command starts the evaluation again",
        ),
    ],
)
def test_ctrl_c_promises_what_the_command_keeps(tmp_path, module, work, said):
    program = (
        "import os, runpy, signal, sys\n"
        f"import fct_jax.{module}.{work} as work\n"
        f"work.{module} = lambda *given: os.kill(os.getpid(), signal.SIGINT)\n"
        f"sys.argv = ['x', '--config=digits_evaluate', {f'--workdir={tmp_path}'!r}]\n"
        f"runpy.run_module('fct_jax.{module}', run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, cwd=tiny_runs.REPOSITORY, capture_output=True, text=True, timeout=LONG
    )
    assert (done.returncode, done.stderr) == (130, f"stopped; {said}\n")
