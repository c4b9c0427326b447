"""The new model: ResNet-50 on all 1,000 classes.

  python -m fct_jax.train --config configs/imagenet_backbone_new.py --workdir runs/imagenet/new

Published, new/new, CMC@1 / CMC@5 / mAP in percent: 68.4 / 84.7 / 45.6.
"""

from fct_jax import recipes


def get_config():
    return recipes.imagenet(recipes.backbone())
