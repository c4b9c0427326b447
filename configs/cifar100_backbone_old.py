"""The old model: ResNet-50 on 50 classes of CIFAR-100.

  python -m fct_jax.train --config configs/cifar100_backbone_old.py --workdir runs/cifar100/old

For numeric class order instead of the published text order: --config.data.classes="first 50"

Published, old/old, CMC@1 / CMC@5 / mAP in percent: 34.2 / 60.6 / 16.5.
"""

from fct_jax import recipes


def get_config():
    config = recipes.cifar100(recipes.backbone())
    config.data.classes = recipes.CIFAR100_OLD_CLASSES
    return config
