"""The new model: ResNet-50 on all 100 classes.

  python -m fct_jax.train --config configs/cifar100_backbone_new.py --workdir runs/cifar100/new

Published, new/new, CMC@1 / CMC@5 / mAP in percent: 56.5 / 77.0 / 36.3.
"""

from configs import common


def get_config():
    return common.cifar100(common.backbone())
