"""What training changes: arrays only."""

from typing import Any, NamedTuple

import jax


class State(NamedTuple):
    """Everything a step reads and writes; saved whole in a checkpoint.

    Attributes:
      step: () int32, updates made so far; the randomness of a step is folded from it.
      params: trained parameters.
      batch_stats: running BatchNorm statistics.
      opt_state: the optimizer's state.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any

    @property
    def variables(self) -> dict:
        """As a module's ``apply`` takes them."""
        return {"params": self.params, "batch_stats": self.batch_stats}
