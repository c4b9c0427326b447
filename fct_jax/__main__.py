"""``python -m fct_jax`` is the command ``fct-jax``."""

import sys

from fct_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
