"""A process that is killed, or asked to stop, ends all others with one line each."""

import signal
import textwrap
import time

import cluster
import pytest
from patience import LONG
from ports import free_port

pytestmark = pytest.mark.multiprocess


def program(folder, text):
    """Write a script that joins as process ``sys.argv[2]`` of 2, prints "ready" and goes on."""
    path = folder / "program.py"
    start = """
        import ctypes, sys
        from fct_jax.runtime import processes
        index = int(sys.argv[2])
        def in_compiled_code():
            '''Wait for ever where Python's own signal handlers cannot run.'''
            mutex = ctypes.create_string_buffer(256)
            for _ in range(2):
                ctypes.CDLL(None).pthread_mutex_lock(mutex)
        processes.start(f"localhost:{sys.argv[1]}", index, 2, timeout=1200)
    """
    path.write_text(textwrap.dedent(start) + textwrap.dedent(text))
    port = free_port()
    return lambda index: [path, port, index]


def after(arguments_of, logs, victim, sent, count=2):
    """Send a signal to a process when all are ready; return codes and outputs."""
    with cluster.started(arguments_of, count, logs, devices=1) as running:
        deadline = time.monotonic() + LONG
        while not all("ready" in said for said in cluster.outputs(logs, count)):
            assert all(process.poll() is None for process in running), cluster.outputs(logs, count)
            assert time.monotonic() < deadline
            time.sleep(0.05)
        running[victim].send_signal(sent)
        return cluster.finished(running, logs, timeout=LONG)


IN_STEPS = """
    import jax, jax.numpy as jnp, numpy as np
    from fct_jax.errors import UserError
    from fct_jax.runtime import command_line, sharding
    def main():
        mesh = sharding.make_mesh()
        ones = sharding.put_global(np.ones(jax.device_count()), mesh)
        add = jax.jit(jnp.sum, out_shardings=sharding.replicated(mesh))
        print("ready", flush=True)
        step = 0
        while True:
            jax.block_until_ready(add(ones))
            step += 1
            if FAILS and index == 1 and step == 50:
                raise UserError("cat.png cannot be read")
    sys.argv[1:] = []
    command_line.run(main, "")
"""


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_with_one_line(tmp_path, victim):
    """Both are in the middle of common steps, so that the loss breaks their collectives too."""
    text = IN_STEPS.replace("FAILS", "False")
    codes, said = after(program(tmp_path, text), tmp_path / "logs", victim, signal.SIGKILL)
    other = 1 - victim
    assert codes[victim] == -signal.SIGKILL and codes[other] == 1
    *_, ready, line = said[other].splitlines()
    assert ready == "ready"
    assert line.startswith(f"error: process {victim} (") and ") was lost: it was killed, or" in line


def test_an_error_in_one_process_ends_both(tmp_path):
    """It occurs in the middle of common steps, while the other process waits for this one."""
    text = IN_STEPS.replace("FAILS", "True")
    codes, said = cluster.run(
        program(tmp_path, text), 2, tmp_path / "logs", timeout=LONG, devices=1
    )
    assert codes == [1, 1], said
    assert said[1].splitlines()[-1] == "error: cat.png cannot be read"
    assert said[0].splitlines()[-1] == "error: process 1 ended: cat.png cannot be read"


@pytest.mark.parametrize("victim", [0, 1])
def test_sigterm_while_setting_up_ends_both_at_once(tmp_path, victim):
    """One compiles, or so it seems to Python; the other waits for it."""
    text = """
        from fct_jax.train.termination import Termination
        with Termination():
            print("ready", flush=True)
            in_compiled_code() if index == 1 else processes.barrier("never")
    """
    codes, said = after(program(tmp_path, text), tmp_path / "logs", victim, signal.SIGTERM)
    line = "before the first step; there was nothing to save"
    assert codes == [0, 0], said
    assert said[victim].splitlines()[-1] == f"terminated {line}"
    assert said[1 - victim].splitlines()[-1] == f"process {victim} was terminated {line}"


def test_sigterm_while_the_others_are_waited_for(tmp_path):
    """Process 0 has not been started, so that process 1 cannot begin."""
    path = tmp_path / "alone.py"
    path.write_text(
        "from fct_jax.runtime import processes\n"
        "from fct_jax.runtime.links import Links\n"
        "meet = Links.meet\n"
        "def says_so(self, timeout):\n"
        "    print('ready', flush=True)\n"
        "    meet(self, timeout)\n"
        "Links.meet = says_so\n"
        f"processes.start('localhost:{free_port()}', 1, 2)\n"
    )
    codes, said = after(lambda _: [path], tmp_path / "logs", 0, signal.SIGTERM, count=1)
    assert codes == [143]
    assert said == ["ready\nterminated; repeat the command on all hosts\n"]
