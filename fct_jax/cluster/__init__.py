"""Check, on all hosts at once, what a run needs of them: ``fct-jax doctor cluster``.

Process 0 opens the coordinator's port, the others come to it, and it asks all of them the same
questions (``actions.py``). What the answers say about the cluster is decided in ``checks.py``. JAX
is not started across processes, so nothing waits for ever; every wait has a limit of seconds.
"""

from fct_jax.cluster.examination import Examination, examine

__all__ = ["Examination", "examine"]
