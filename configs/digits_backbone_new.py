"""The new model: trained on all ten digits.

python -m fct_jax.train --config configs/digits_backbone_new.py --workdir runs/digits/new
"""

from configs import common


def get_config():
    return common.digits_backbone()
