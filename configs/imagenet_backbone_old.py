"""The old model: ResNet-50 on the first 500 classes of ImageNet-1k.

  python -m fct_jax.train --config configs/imagenet_backbone_old.py --workdir runs/imagenet/old

Published, old/old, CMC@1 / CMC@5 / mAP in percent: 46.4 / 65.1 / 28.3.
"""

from fct_jax import recipes


def get_config():
    config = recipes.imagenet(recipes.backbone())
    config.data.classes = "first 500"
    return config
