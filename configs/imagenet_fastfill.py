"""FastFill on ImageNet-1k: FCT with a classification loss and an uncertainty of each item.

  python -m fct_jax.train --config configs/imagenet_fastfill.py --workdir runs/imagenet/fastfill

With side information add --config.side=runs/imagenet/simclr (configs/imagenet_simclr.py).
Published, area under the curve in the order of uncertainty, CMC@1 / CMC@5 / mAP in percent:
66.5 / 83.6 / 44.8 (67.8 / 84.2 / 46.2).
"""

from fct_jax import recipes


def get_config():
    config = recipes.imagenet(recipes.fastfill())
    config.old = "runs/imagenet/old"
    config.new = "runs/imagenet/new"
    return config
