"""FCT on the digits: from the old model's embeddings to the new model's space.

  python -m fct_jax.train --config configs/digits_fct.py --workdir runs/digits/fct

With side information add --config.side=runs/digits/simclr (configs/digits_simclr.py).
Training takes seconds.
"""

from fct_jax import recipes


def get_config():
    return recipes.digits_transformation(recipes.fct())
