"""FCT on ImageNet-1k: from the old model's embeddings to the new model's space.

  python -m fct_jax.train --config configs/imagenet_fct.py --workdir runs/imagenet/fct

With side information add --config.side=runs/imagenet/simclr (configs/imagenet_simclr.py).
Published, new/old, CMC@1 / CMC@5 / mAP in percent:
61.8 / 80.5 / 39.9 (with side information 65.1 / 82.7 / 44.0).
"""

from fct_jax import recipes


def get_config():
    config = recipes.imagenet(recipes.fct())
    config.old = "runs/imagenet/old"
    config.new = "runs/imagenet/new"
    return config
