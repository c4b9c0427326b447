"""``python -m fct_jax.compare`` is ``fct-jax compare``."""

import sys

from fct_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
