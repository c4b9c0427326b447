"""Metrics of a run: ``metrics.jsonl`` and TensorBoard, the same numbers in both."""

import json
from pathlib import Path

from tensorboardX import SummaryWriter


class MetricsLog:
    """Appends to ``RUN/metrics.jsonl`` and ``RUN/tensorboard``.

    Args:
      workdir: of the run.
      step: where the run goes on; later entries, of steps that are repeated, are removed.
    """

    def __init__(self, workdir: Path, step: int):
        path = Path(workdir) / "metrics.jsonl"
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= step]
        path.write_text("".join(line + "\n" for line in kept))
        self._file = path.open("a")
        self._board = SummaryWriter(str(Path(workdir) / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """One entry; names like "train/loss"."""
        values = {name: float(value) for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Everything is on disk after this."""
        self._file.close()
        self._board.close()


def _lines(path: Path) -> list[str]:
    """Whole lines: one that a kill cut short is left out."""
    if not path.is_file():
        return []
    return [line for line in path.read_text().split("\n")[:-1] if line]
