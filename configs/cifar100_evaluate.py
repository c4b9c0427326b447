"""Old, new, FCT and FastFill on CIFAR-100, with backfilling curves.

  python -m fct_jax.evaluate --config configs/cifar100_evaluate.py --workdir runs/cifar100/report

If the transformations were trained with side information, add
--config.side=runs/cifar100/simclr.
Published areas under the curve, CMC@1 / CMC@5 / mAP in percent:
FCT in random order 49.1 / 73.6 / 29.1;
FastFill in the order of uncertainty 53.6 / 75.3 / 32.5.
"""

from fct_jax import recipes


def get_config():
    config = recipes.cifar100(recipes.evaluate())
    config.old = "runs/cifar100/old"
    config.new = "runs/cifar100/new"
    config.transformed = "FCT=runs/cifar100/fct,FastFill=runs/cifar100/fastfill"
    return config
