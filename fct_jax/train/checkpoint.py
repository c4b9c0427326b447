"""Checkpoints of a run. The only file that imports Orbax."""

import contextlib
import logging as python_logging
import math
import shutil
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from absl import logging

from fct_jax.errors import UserError
from fct_jax.runtime import processes

# Orbax reports every save at INFO and WARNING; a user wants the exceptions only.
python_logging.getLogger("orbax").setLevel(python_logging.ERROR)


_FULL = ("no space left", "disk quota", "enospc", "edquot")  # as Orbax and TensorStore word it


def check_space(workdir: Path, state, config) -> None:
    """Check that the run's checkpoints and its model will fit on the disk.

    Args:
      workdir: directory of the run; its existing checkpoints are counted.
      state: arrays or shapes.
      config: has ``keep_checkpoints`` and ``keep_best``.

    Raises:
      UserError: if less space is free than the run may need.
    """
    sizes = [math.prod(array.shape) * array.dtype.itemsize for array in jax.tree.leaves(state)]
    # One more of each is written before the oldest is removed; the model is a part of the state.
    copies = config.keep_checkpoints + 1 + (2 if config.keep_best else 0) + 1
    there = sum(file.stat().st_size for file in workdir.rglob("*") if file.is_file())
    needed, free = copies * sum(sizes) - there, shutil.disk_usage(workdir).free
    if free < needed:
        raise UserError(
            f"{workdir} has {free / 1e9:.2f} GB free, but checkpoints and model need "
            f"{needed / 1e9:.2f} GB; a smaller config.keep_checkpoints needs less"
        )


@contextlib.contextmanager
def _disk_errors(folder: Path):
    """Report a full disk in one line, for which Orbax would show its stack trace."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # Orbax and TensorStore raise many kinds
        if any(word in str(error).lower() for word in _FULL):
            raise UserError(
                f"no space left to write {folder}; earlier checkpoints are kept: free some space, "
                "and the same command resumes from the last of them"
            ) from error
        raise


class Checkpoints:
    """Saves and restores (state, position of the data feed) by step, newest first.

    Saving is asynchronous and atomic: an interrupted save leaves no checkpoint. Every process
    calls every method; each writes its own part of the arrays into the folder that they share.

    Args:
      folder: ``RUN/checkpoints``.
      keep: number of the newest checkpoints that are kept.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder = Path(folder).absolute()
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                create=True,
                cleanup_tmp_directories=True,
                # Two managers of one run must not meet at each other's barriers.
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    barrier_sync_key_prefix=self.folder.name
                ),
            ),
            item_names=("state", "feed"),
        )

    def save(self, step: int, state, feed: dict) -> None:
        """Start writing; return as soon as the arrays are copied off the device."""
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(state), feed=ocp.args.JsonSave(feed)
        )
        with _disk_errors(self.folder):  # of the save before, too
            self._manager.save(step, args=arguments)

    def restore(self, like):
        """Return the newest readable checkpoint as (state, feed), or None without one.

        Args:
          like: a state of the same shapes and shardings (arrays or ShapeDtypeStructs).

        A checkpoint that cannot be read is skipped with a warning.

        Raises:
          UserError: there are checkpoints, and none of them can be read.
        """
        steps = self.steps
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        for passed_over, step in enumerate(steps):
            try:
                found = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(abstract), feed=ocp.args.JsonRestore()
                    ),
                )
                reason = ""
            except Exception as error:  # Orbax and TensorStore raise many kinds
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            # Each process reads its own part: what one cannot read, none takes.
            reasons = list(filter(None, processes.gather(reason, f"restored {step}")))
            if reasons:
                logging.warning("checkpoint %d cannot be read and is skipped: %s", step, reasons[0])
                continue
            for damaged in steps[:passed_over]:
                self._set_aside(damaged)
            return found.state, found.feed
        if steps:
            raise UserError(
                f"no checkpoint in {self.folder} can be read "
                "(damaged, or of another model); choose another --workdir to start again"
            )
        return None

    def _set_aside(self, step: int) -> None:
        """Rename a damaged checkpoint, so that its step can be saved again and nothing is lost."""
        folder = self.folder / str(step)
        if processes.is_writer():
            folder.rename(folder.with_name(f"unreadable-{step}"))
        processes.barrier(f"set aside {folder}")
        self._manager.reload()

    @property
    def steps(self) -> list[int]:
        """Return the steps of the finished checkpoints, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def position(self, step: int) -> dict:
        """Return the ``feed`` that was saved with a step."""
        return self._manager.restore(
            step, args=ocp.args.Composite(feed=ocp.args.JsonRestore())
        ).feed

    def delete(self, step: int) -> None:
        """Remove a checkpoint."""
        self._manager.delete(step)

    @property
    def latest_step(self) -> int | None:
        """Return the step of the newest finished checkpoint."""
        return self._manager.latest_step()

    def wait(self) -> None:
        """Return when everything is on disk."""
        with _disk_errors(self.folder):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, and close the directory."""
        self.wait()
        self._manager.close()
