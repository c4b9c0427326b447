"""Compatible models judged side by side: scores, test sets, report.

from fct_jax.compare import compare

compare("runs/old", {"bct": "runs/bct"}, new="runs/new", data="digits", out="report")
"""


def __getattr__(name: str):
    """Import `compare` when it is first used: measures alone need no data set."""
    if name == "compare":
        from fct_jax.compare.command import compare

        return compare
    raise AttributeError(f"module 'fct_jax.compare' has no attribute {name!r}")
