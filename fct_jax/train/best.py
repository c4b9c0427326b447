"""The best state by a validation metric, kept in addition to the newest checkpoints."""

import math

from fct_jax.errors import UserError, unknown
from fct_jax.train.checkpoint import Checkpoints

_BETTER = {"max": float.__gt__, "min": float.__lt__}


class Best:
    """``RUN/checkpoints/best``: one checkpoint, of the step with the best value so far.

    Args:
      rule: ``config.keep_best``, checked: "max top1", "min loss"; "": none is kept.
      newest: the run's other checkpoints.
    """

    def __init__(self, rule: str, newest: Checkpoints):
        self._rule, self._newest, self._checkpoints = rule, newest, None
        self.step, self.value = None, None
        if not rule:
            return
        mode, self.metric = _parse(rule)
        self._better = _BETTER[mode]
        self._checkpoints = Checkpoints(newest.folder / "best", keep=1)
        for step in self._checkpoints.steps:
            found = self._checkpoints.position(step)
            if found.get("rule") == rule:
                self.step, self.value = step, found["value"]

    def go_on_from(self, step: int) -> None:
        """Drop a best checkpoint from a later step (it will come again) or from another rule."""
        if self._checkpoints is None:
            return
        for saved in self._checkpoints.steps:
            if saved > step or self.step is None:
                self._checkpoints.delete(saved)
                self.step, self.value = None, None

    def offer(self, step: int, metrics: dict[str, float], state) -> None:
        """Keep the state if its metric is the best so far; return when it is on disk."""
        if self._checkpoints is None or not math.isfinite(metrics[self.metric]):
            return
        value = float(metrics[self.metric])
        if self.value is None or self._better(value, self.value):
            self._newest.wait()  # one write at a time
            self._checkpoints.save(step, state, {"rule": self._rule, "value": value})
            self._checkpoints.wait()
            self.step, self.value = step, value

    def restore(self, like):
        """Return the best state. Raises UserError if there is none."""
        if self.step is None:
            raise UserError(
                f"config.export=best: no validation gave a finite {self.metric}; "
                "config.export=last exports the final state"
            )
        return self._checkpoints.restore(like)[0]

    def close(self) -> None:
        """Close the directory."""
        if self._checkpoints is not None:
            self._checkpoints.close()


def check_rule(rule: str, export: str, metrics: tuple[str, ...]) -> None:
    """Raise UserError if ``config.keep_best`` and ``config.export`` cannot be followed.

    Args:
      rule: ``config.keep_best``.
      export: ``config.export``.
      metrics: names of the task's validation metrics.
    """
    if export not in ("last", "best"):
        raise unknown("config.export", export, ("last", "best"))
    if export == "best" and not rule:
        raise UserError("config.export=best needs config.keep_best, 'max top1' for example")
    if not rule:
        return
    if not metrics:
        raise UserError(f"config.keep_best={rule!r}, but there is no validation split to judge by")
    mode, name = _parse(rule)
    if mode not in _BETTER:
        raise UserError(
            f"config.keep_best={rule!r} must be 'max METRIC' or 'min METRIC'; "
            f"metrics: {', '.join(metrics)}"
        )
    if name not in metrics:
        raise unknown("metric in config.keep_best:", name, metrics)


def _parse(rule: str) -> tuple[str, str]:
    """Return ("max" or "min", name of the metric, as in the log or without its prefix)."""
    mode, _, name = rule.partition(" ")
    return mode, name.strip().removeprefix("validation/")
