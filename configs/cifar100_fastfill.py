"""FastFill on CIFAR-100: FCT with a classification loss and an uncertainty of each item.

  python -m fct_jax.train --config configs/cifar100_fastfill.py --workdir runs/cifar100/fastfill

With side information add --config.side=runs/cifar100/simclr (configs/cifar100_simclr.py).
Published, area under the curve in the order of uncertainty, CMC@1 / CMC@5 / mAP in percent:
53.6 / 75.3 / 32.5.
"""

from fct_jax import recipes


def get_config():
    config = recipes.cifar100(recipes.fastfill())
    config.old = "runs/cifar100/old"
    config.new = "runs/cifar100/new"
    return config
