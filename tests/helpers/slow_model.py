"""A map and a new model that take their time, so that a test can kill who uses them."""

import os
import time
from pathlib import Path

import numpy as np
import tiny_galleries as tiny

from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.storage.ids import Finder


def meet(folder: Path, name: str, count: int) -> None:
    """Wait until so many processes have come here."""
    (folder / f"{name}-{os.getpid()}").touch()
    while len(list(folder.glob(f"{name}-*"))) < count:
        time.sleep(0.1)


def translate(old):
    """Return h(old) of the tests' plain map, a block in ``$SLOW`` seconds.

    With ``$MEET``, a folder, the first two processes wait for each other before they begin.
    """
    if len(old) > 1:
        if "MEET" in os.environ:
            meet(Path(os.environ["MEET"]), "translate", 2)
        time.sleep(float(os.environ.get("SLOW", "0.02")))
    return old @ tiny.weight()


def embed(ids):
    """Return the vectors of ids in ``$NEW``; note in ``$ASKED`` how many were asked for.

    With ``$HOLD``, a file, calls after the first twenty wait until it is there.
    """
    time.sleep(0.1)
    asked, hold = Path(os.environ["ASKED"]), os.environ.get("HOLD")
    asked.touch()
    while hold and not Path(hold).exists() and len(asked.read_text().split()) >= 20:
        time.sleep(0.1)
    with asked.open("a") as file:
        file.write(f"{len(ids)}\n")
    found = EmbeddingSet.read(os.environ["NEW"])
    return np.asarray(found.vectors)[Finder(found.ids)(ids)]
