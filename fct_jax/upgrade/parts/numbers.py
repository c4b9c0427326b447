"""The number of a part, as a user (``3/16``), SLURM or Kubernetes gives it."""

import dataclasses
import os
import re
from collections.abc import Mapping

from fct_jax.errors import UserError

_HOW = "give NUMBER/COUNT, such as 3/16, or auto in a SLURM array or a Kubernetes Indexed Job"


@dataclasses.dataclass(frozen=True)
class Part:
    """One of ``count`` parts; ``number`` counts from 1."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"part {self.number}/{self.count}"

    def pieces(self, count: int) -> range:
        """Return the numbers of its pieces among ``count`` pieces: every n-th one."""
        return range(self.number - 1, count, self.count)

    @classmethod
    def of(cls, text: str, environment: Mapping[str, str] = os.environ) -> "Part":
        """Return the part that a text names.

        Args:
          text: ``3/16`` (parts count from 1), ``auto``, or ``auto/16`` if nothing tells the number
            of parts.
          environment: variables that ``auto`` reads: those of a SLURM array
            (``SLURM_ARRAY_TASK_ID`` …) or of a Kubernetes Indexed Job (``JOB_COMPLETION_INDEX``,
            and ``JOB_COMPLETIONS`` from your manifest).

        Raises:
          UserError: the text or the environment names no part.
        """
        auto = re.fullmatch(r"auto(?:/(\d+))?", text)
        if auto:
            return cls._checked(*_of_environment(auto[1], environment), text)
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if not found:
            raise UserError(f"--part {text}: {_HOW}")
        return cls._checked(int(found[1]), int(found[2]), text)

    @classmethod
    def _checked(cls, number: int, count: int, text: str) -> "Part":
        if count < 1 or not 1 <= number <= count:
            of = "" if text == f"{number}/{count}" else f" (number {number} of {count})"
            raise UserError(f"--part {text}{of}: parts count from 1 to {max(count, 1)}")
        return cls(number, count)


def _of_environment(count: str | None, given: Mapping[str, str]) -> tuple[int, int]:
    """Return (number from 1, count) of this task."""
    try:
        if "SLURM_ARRAY_TASK_ID" in given:
            first = int(given.get("SLURM_ARRAY_TASK_MIN", 0))
            step = int(given.get("SLURM_ARRAY_TASK_STEP", 1))
            index = (int(given["SLURM_ARRAY_TASK_ID"]) - first) // step
            known, missing = given.get("SLURM_ARRAY_TASK_COUNT"), "SLURM_ARRAY_TASK_COUNT"
        elif "JOB_COMPLETION_INDEX" in given:
            index = int(given["JOB_COMPLETION_INDEX"])
            known, missing = given.get("JOB_COMPLETIONS"), "JOB_COMPLETIONS"
        else:
            raise UserError(
                "--part auto: neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX is set; "
                "give NUMBER/COUNT, such as 3/16"
            )
        if count is None and known is None:
            raise UserError(f"--part auto: {missing} is not set; give the number: --part auto/16")
        return index + 1, int(count or known)
    except ValueError as error:
        raise UserError(f"--part auto: {error}; {_HOW}") from None
