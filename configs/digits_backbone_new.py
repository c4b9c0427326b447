"""The new model: trained on all ten digits.

python -m fct_jax.train --config configs/digits_backbone_new.py --workdir runs/digits/new
"""

from fct_jax import recipes


def get_config():
    return recipes.digits_backbone()
