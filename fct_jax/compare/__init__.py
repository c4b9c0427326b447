"""Compatible models judged side by side: scores, test sets, report.

from fct_jax.compare import compare

compare("runs/old", {"bct": "runs/bct"}, new="runs/new", data="digits", out="report")
"""

from fct_jax.runtime import lazy

__getattr__, __dir__, __all__ = lazy.names(__name__, {"compare": "compare.command"})
