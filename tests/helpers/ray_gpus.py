"""Ask workers of Ray, each with a share of a card, which one they see; print it as JSON.

python ray_gpus.py ADDRESS
"""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from patience import LONG
from slow_model import meet

from fct_jax.errors import UserError
from fct_jax.upgrade.parts import ray_cluster
from fct_jax.upgrade.parts.engines import Engine


def seen(ids):
    """Return the visible cards and the process, once so many workers as the id says are here."""
    meet(Path(os.environ["MEET"]), f"seen-{ids[0]}", int(ids[0]))
    return [[os.environ.get("CUDA_VISIBLE_DEVICES"), os.getpid()]]


def ask(address: str, workers: int | None, gpus: float, name: str = "seen"):
    """Return what each worker sees, or the error."""
    engine = Engine("ray", address, workers, gpus)
    try:
        with engine.opened() as opened:
            function, count = opened.function(f"ray_gpus:{name}")
            with ThreadPoolExecutor(count) as threads:
                return [each[0] for each in threads.map(function, [[count]] * count)]
    except UserError as error:
        return str(error)


if __name__ == "__main__":
    where, ray_cluster.REACHED = sys.argv[1], LONG
    with Engine("ray", where).opened():
        asked = ((2, 1), (None, 0.5), (1, 4), (3, 1), (1, 0, "sen"))
        print(json.dumps([ask(where, *each) for each in asked]))
