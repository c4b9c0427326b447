"""Parts of every command: flags, the config file, one line for every mistake."""

import difflib
import errno
import re
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from fct_jax.errors import UserError
from fct_jax.runtime import extras, starting
from fct_jax.runtime.config_files import find_config, read_config

flags.disclaim_key_flags()  # flags defined here are shown as the command's own

# ml_collections and absl raise these for flags that they cannot accept.
_FLAG_ERRORS = (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError)
# The user can mend a full, read-only or forbidden place, so one line says where it is.
_OF_THE_DISK = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
)


def define_process_flags() -> None:
    """Define the flags of a command that can run as several processes; ``run`` acts on them."""
    flags.DEFINE_boolean(
        "distributed",
        False,
        "several processes work as one: run the same command on every host. Cloud TPU, SLURM, GKE "
        "and Open MPI number the processes themselves; elsewhere use the three flags below",
    )
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, for instance 10.0.0.1:1234")
    flags.DEFINE_integer("process_id", None, "number of this process, from 0")
    flags.DEFINE_integer("num_processes", None, "how many processes there are")


def run(
    main: Callable[[], None],
    help_text: str,
    interrupted: str = "stopped; the same command resumes from the last checkpoint",
) -> None:
    """Parse the command line, run ``main`` and exit: 0, 1 (a UserError) or 130 (Ctrl-C).

    An error in one of several processes ends them all.

    Args:
      main: the command, which finds its values in ``flags.FLAGS``.
      help_text: shown above the flags by ``--help``.
      interrupted: the line that Ctrl-C leaves.
    """
    if {"-h", "--help", "-help"} & set(sys.argv[1:]):
        print(help_text.strip(), "\n\nFlags:")
        print(flags.FLAGS.module_help(sys.argv[0]) or flags.FLAGS.main_module_help())
        sys.exit(0)
    logging.set_verbosity(logging.WARNING)
    try:
        _parse(sys.argv)
        from fct_jax.runtime import processes  # late, so that mistakes are answered at once
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except ModuleNotFoundError as error:
        _tell_missing(error)

    try:
        starting.begun()
        _start(processes)
        main()
        processes.barrier("end of the command")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        processes.end_all(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        processes.end_all("stopped from the keyboard", status=130)
        sys.exit(130)
    except Exception as error:
        if processes.count() == 1:
            if isinstance(error, ModuleNotFoundError):
                _tell_missing(error)
            if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
                where = f"{error.filename}: " if error.filename else ""
                hint = "fix this and repeat the command to resume"
                print(f"error: {where}{error.strerror}; {hint}", file=sys.stderr)
                sys.exit(1)
            raise
        # If another process failed first, its reason is more informative than this one's error.
        time.sleep(processes.NOTICE_SECONDS)
        traceback.print_exc()
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        print(
            f"error: {reason}; if a process was killed, repeat the command on all of them",
            file=sys.stderr,
        )
        processes.end_all(reason)


def _tell_missing(error: ModuleNotFoundError) -> None:
    """Say which extra is missing and exit; raise the error again where none would help."""
    said = extras.missing(error)
    if said is None:
        raise error
    print(f"error: {said}", file=sys.stderr)
    sys.exit(1)


def _start(processes) -> None:
    if "distributed" not in flags.FLAGS:
        return
    given = flags.FLAGS.coordinator, flags.FLAGS.process_id, flags.FLAGS.num_processes
    if flags.FLAGS.distributed or given != (None, None, None):
        processes.start(*given)
        processes.say(processes.summary())


def define_config(default: Callable[[], ConfigDict] | None = None):
    """Define ``--config``, a file or the name of a packaged config.

    Args:
      default: makes the config of a command line without ``--config``; None: the flag is required.
    """
    if default is not None and _config_path(sys.argv) is None:
        return config_flags.DEFINE_config_dict("config", default())
    holder = config_flags.DEFINE_config_file(
        "config", None, "config file, or the name of a packaged one such as digits_fct"
    )
    if default is None:
        flags.mark_flag_as_required("config")
    return holder


def _parse(argv: list[str]) -> None:
    given = _config_path(argv)
    if given is not None:
        path = find_config(given)
        read_config(path)  # its mistakes are told here, with their place
        _put_config_path(argv, path)
    try:
        rest = flags.FLAGS(argv)
    except _FLAG_ERRORS as error:
        raise UserError(_one_line(error, argv)) from None
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is not a flag; flags look like --name=value")


_CONFIG_FLAG = re.compile(r"--?config(=(?P<path>.*))?")


def _config_path(argv: list[str]) -> str | None:
    for here, after in zip(argv, [*argv[1:], ""], strict=True):
        found = _CONFIG_FLAG.fullmatch(here)
        if found:
            return found["path"] or after
    return None


def _put_config_path(argv: list[str], path: Path) -> None:
    """Put the file's path where the command line names the config."""
    for place, word in enumerate(argv):
        found = _CONFIG_FLAG.fullmatch(word)
        if found:
            argv[place : place + (1 if found["path"] else 2)] = [f"--config={path}"]
            return


def _one_line(error: Exception, argv: list[str]) -> str:
    """Return the mistake in the flags as a sentence."""
    if isinstance(error, AttributeError | KeyError):
        config = read_config(Path(_config_path(argv)))
        for argument in argv:
            flag = argument.split("=")[0]
            if flag.startswith("--config.") and (found := _unknown_key(flag, config)):
                return found
    missing = re.match(r"flag --(\w+)=None: ", str(error))
    if missing:
        return f"--{missing[1]} is missing; --help explains it"
    return " ".join(str(error).split()).strip('"')


def _unknown_key(flag: str, config: ConfigDict) -> str | None:
    """Return the message for ``--config.a.b`` if the config has no a or no a.b, else None."""
    section = config
    for key in flag.split(".")[1:]:
        if not isinstance(section, ConfigDict):
            return None
        if key not in section:
            close = difflib.get_close_matches(key, list(section), n=1, cutoff=0.0)
            return f"unknown config key {flag}; did you mean {close[0]!r}?"
        section = section[key]
    return None
