"""Batches made in parallel: by threads of this process, or by Grain's worker processes."""

import multiprocessing
import os
import re
import signal
import threading

import grain
from absl import flags

from fct_jax.errors import UserError


class DeadWorker(UserError):
    """A worker process died; the message says which one and how."""


def in_parallel(dataset: grain.MapDataset, workers: int) -> grain.IterDataset:
    """Return the elements of ``dataset``, in order, made by ``workers`` processes (0: threads)."""
    if not workers:
        threads = max(2, min(8, os.cpu_count() or 1))
        return dataset.to_iter_dataset(grain.ReadOptions(threads, threads + 1))
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain hands its flags to the workers; ours come from configs
    return dataset.to_iter_dataset(grain.ReadOptions(1, 1)).mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2),
        worker_init_fn=_begin,
    )


def dead_worker(error: RuntimeError, taken: int, workers: int) -> DeadWorker | None:
    """Return our error for Grain's error about a dead worker, or None for other errors of Grain.

    Args:
      error: the exception that Grain raised.
      taken: elements taken since the workers began; the workers take turns.
      workers: number of workers.
    """
    if "terminated unexpectedly" not in str(error):
        return None
    code = re.search(r"exit code (-?\d+)", str(error))
    how = f"exit code {code[1]}" if code else "exit code unknown"
    if code and int(code[1]) < 0:
        how = f"killed by {signal.Signals(-int(code[1])).name}"
    return DeadWorker(f"data worker {taken % workers} of {workers} died ({how})")


def _begin(index: int, count: int) -> None:
    """Prepare a worker process; Grain calls this first in each of them."""
    del index, count
    # A signal to the whole process group (Ctrl-C, a scheduler) is meant for the training, which
    # saves first and then stops its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker together with its training, so that it does not go on holding memory."""
    multiprocessing.parent_process().join()
    os._exit(1)
