"""Metrics of a run: ``metrics.jsonl`` and TensorBoard, the same numbers in both."""

import json
import sys
from pathlib import Path

from fct_jax.runtime import processes
from fct_jax.storage.files import write_synced

# tensorboardX imports PyTorch where it is installed: two seconds that no scalar needs.
_hidden = sys.modules.setdefault("torch", None) is None
try:
    from tensorboardX import SummaryWriter
finally:
    if _hidden:
        del sys.modules["torch"]


class MetricsLog:
    """Appends to ``RUN/metrics.jsonl`` and ``RUN/tensorboard``, on the writer process alone.

    Args:
      workdir: directory of the run.
      step: step from which the run resumes; later entries, of repeated steps, are removed.
    """

    def __init__(self, workdir: Path, step: int):
        self._file = self._board = None
        self._validated = processes.from_writer(lambda: self._open(Path(workdir), step), "metrics")

    def _open(self, workdir: Path, step: int) -> bool:
        """Remove entries of steps to be repeated; return whether ``step`` has been validated."""
        path = workdir / "metrics.jsonl"
        entries = [json.loads(line) for line in _lines(path)]
        kept = [entry for entry in entries if entry["step"] <= step]
        write_synced(path, "".join(json.dumps(entry) + "\n" for entry in kept).encode())
        self._file = path.open("a")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)
        last = [name for entry in kept if entry["step"] == step for name in entry]
        return any(name.startswith("validation/") for name in last)

    @property
    def validated(self) -> bool:
        """Return whether the step from which the run resumes already has its validation entry."""
        return self._validated

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write one entry; names are like "train/loss"."""
        if self._file is None:
            return
        values = {name: float(value) for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Put everything on disk."""
        if self._file is not None:
            self._file.close()
            self._board.close()


def _lines(path: Path) -> list[str]:
    """Return the complete lines, without one that a kill cut off."""
    if not path.is_file():
        return []
    return [line for line in path.read_text().split("\n")[:-1] if line]
