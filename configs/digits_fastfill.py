"""FastFill on the digits: FCT with a classification loss and an uncertainty of each item.

  python -m fct_jax.train --config configs/digits_fastfill.py --workdir runs/digits/fastfill

With side information add --config.side=runs/digits/simclr (configs/digits_simclr.py).
Training takes seconds.
"""

from fct_jax import recipes


def get_config():
    return recipes.digits_transformation(recipes.fastfill())
