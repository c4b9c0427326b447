"""FCT on CIFAR-100: from the old model's embeddings to the new model's space.

  python -m fct_jax.train --config configs/cifar100_fct.py --workdir runs/cifar100/fct

With side information add --config.side=runs/cifar100/simclr (configs/cifar100_simclr.py).
Published, new/old, CMC@1 / CMC@5 / mAP in percent:
47.2 / 72.6 / 25.8 (with side information 50.2 / 73.7 / 32.2).
"""

from fct_jax import recipes


def get_config():
    config = recipes.cifar100(recipes.fct())
    config.old = "runs/cifar100/old"
    config.new = "runs/cifar100/new"
    return config
