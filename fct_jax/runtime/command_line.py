"""What the commands share: flags, the config file, one line for every mistake."""

import difflib
import re
import runpy
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from absl import flags, logging
from ml_collections import ConfigDict

from fct_jax.errors import UserError

flags.disclaim_key_flags()  # flags defined here are shown as the command's own

# What ml_collections and absl raise for flags that they cannot accept.
_FLAG_ERRORS = (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError)


def define_process_flags() -> None:
    """Flags of a command that can run as several processes; ``run`` acts on them."""
    flags.DEFINE_boolean(
        "distributed",
        False,
        "several processes work as one: the same command on every host. Cloud TPU, SLURM, GKE and "
        "Open MPI say by themselves which process is which; elsewhere the three flags below do",
    )
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, for instance 10.0.0.1:1234")
    flags.DEFINE_integer("process_id", None, "number of this process, from 0")
    flags.DEFINE_integer("num_processes", None, "how many processes there are")


def run(main: Callable[[], None], help_text: str) -> None:
    """Parses the command line, runs ``main`` and exits: 0, 1 (a UserError) or 130 (Ctrl-C).

    An error in one of several processes ends them all.

    Args:
      main: the command, which finds its values in ``flags.FLAGS``.
      help_text: shown above the flags by ``--help``.
    """
    if {"-h", "--help", "-help"} & set(sys.argv[1:]):
        print(help_text.strip(), "\n\nFlags:")
        print(flags.FLAGS.module_help(sys.argv[0]) or flags.FLAGS.main_module_help())
        sys.exit(0)
    logging.set_verbosity(logging.WARNING)
    try:
        _parse(sys.argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    from fct_jax.runtime import processes  # late, so that mistakes in flags are answered at once

    try:
        _start(processes)
        main()
        processes.barrier("end of the command")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        processes.end_all(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        processes.end_all("stopped from the keyboard", status=130)
        sys.exit(130)
    except Exception as error:
        if processes.count() == 1:
            raise
        # Where another process failed first, its reason is worth more than what follows from it.
        time.sleep(processes.NOTICE_SECONDS)
        traceback.print_exc()
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        print(
            f"error: {reason}; where a process was killed, give all of them the command again",
            file=sys.stderr,
        )
        processes.end_all(reason)


def _start(processes) -> None:
    if "distributed" not in flags.FLAGS:
        return
    given = flags.FLAGS.coordinator, flags.FLAGS.process_id, flags.FLAGS.num_processes
    if flags.FLAGS.distributed or given != (None, None, None):
        processes.start(*given)
        processes.say(processes.summary())


def _parse(argv: list[str]) -> None:
    path = _config_path(argv)
    if path is not None:
        if not path.is_file():
            raise UserError(_no_such_config(path))
        # `from configs import common` works from any current directory.
        sys.path.append(str(path.resolve().parent.parent))
    try:
        rest = flags.FLAGS(argv)
    except _FLAG_ERRORS as error:
        raise UserError(_one_line(error, argv)) from None
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is not a flag; flags look like --name=value")


def _config_path(argv: list[str]) -> Path | None:
    for here, after in zip(argv, [*argv[1:], ""], strict=True):
        found = re.fullmatch(r"--?config(=(?P<path>.*))?", here)
        if found:
            return Path(found["path"] or after)
    return None


def _no_such_config(path: Path) -> str:
    there = sorted(file.name for file in path.parent.glob("*.py")) if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, there, n=1, cutoff=0.0)
    hint = f"; did you mean {path.parent / close[0]}?" if close else ""
    return f"no config file {path}{hint}"


def _one_line(error: Exception, argv: list[str]) -> str:
    """What was wrong with the flags, as a sentence."""
    if isinstance(error, AttributeError | KeyError):
        config = runpy.run_path(str(_config_path(argv)))["get_config"]()
        for argument in argv:
            flag = argument.split("=")[0]
            if flag.startswith("--config.") and (found := _unknown_key(flag, config)):
                return found
    missing = re.match(r"flag --(\w+)=None: ", str(error))
    if missing:
        return f"--{missing[1]} is missing; --help says what it is"
    return " ".join(str(error).split()).strip('"')


def _unknown_key(flag: str, config: ConfigDict) -> str | None:
    """The message for ``--config.a.b`` where the config has no a or no a.b, else None."""
    section = config
    for key in flag.split(".")[1:]:
        if not isinstance(section, ConfigDict):
            return None
        if key not in section:
            close = difflib.get_close_matches(key, list(section), n=1, cutoff=0.0)
            return f"unknown config key {flag}; did you mean {close[0]!r}?"
        section = section[key]
    return None
