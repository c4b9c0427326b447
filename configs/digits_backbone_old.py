"""The old model: trained on the digits 0 to 4 only.

python -m fct_jax.train --config configs/digits_backbone_old.py --workdir runs/digits/old
"""

from fct_jax import recipes


def get_config():
    config = recipes.digits_backbone()
    config.data.classes = "first 5"
    return config
