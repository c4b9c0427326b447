"""``fct-jax train``, ``embed`` and ``evaluate``: the commands that take a config.

They run ``python -m fct_jax.train`` and so on with shorter arguments: ``NAME`` for
``--config NAME`` and ``key=value`` for ``--config.key=value``.
"""

import re
import runpy
import sys

from fct_jax.cli import DONE, INTERRUPTED
from fct_jax.errors import UserError
from fct_jax.runtime import starting

_KEY = re.compile(r"[A-Za-z_][\w.]*=.*", re.DOTALL)
_STOPPED = 130  # the module's exit status after Ctrl-C


def translated(words: list[str]) -> list[str]:
    """Return the words in the form that ``python -m fct_jax.train`` takes.

    >>> translated(["digits_fct", "--workdir", "runs/fct", "optimizer.lr=0.5"])
    ['--config=digits_fct', '--workdir', 'runs/fct', '--config.optimizer.lr=0.5']
    """
    made, takes_value = [], False
    for word in words:
        if takes_value:
            made.append(word)
            takes_value = False
        elif word.startswith("-"):
            made.append(word)
            takes_value = word in _WITH_VALUE
        elif _KEY.fullmatch(word):
            made.append(f"--config.{word}")
        elif any(m.startswith("--config=") for m in made):
            raise UserError(f"{word!r} is neither key=value nor a flag; a config is already named")
        else:
            made.append(f"--config={word}")
    return made


_WITH_VALUE = tuple(
    dash + name
    for dash in ("-", "--")
    for name in ("config", "workdir", "coordinator", "process_id", "num_processes")
)


def run_words(name: str, words: list[str]) -> int:
    """Run the module of a command that takes a config, and return the exit code."""
    sys.argv = [f"fct-jax {name}", *translated(words)]
    starting.exit_status(INTERRUPTED)
    try:
        runpy.run_module(f"fct_jax.{name}", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        return INTERRUPTED if code == _STOPPED else code
    return DONE
