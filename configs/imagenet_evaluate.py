"""Old, new, FCT and FastFill on ImageNet-1k, with backfilling curves.

  python -m fct_jax.evaluate --config configs/imagenet_evaluate.py --workdir runs/imagenet/report

If the transformations were trained with side information, add
--config.side=runs/imagenet/simclr.
Published areas under the curve, CMC@1 / CMC@5 / mAP in percent:
FCT in random order 62.8 / 81.1 / 40.5 (64.7 / 82.4 / 42.6);
FastFill in the order of uncertainty 66.5 / 83.6 / 44.8 (67.8 / 84.2 / 46.2).
"""

from fct_jax import recipes


def get_config():
    config = recipes.imagenet(recipes.evaluate())
    config.old = "runs/imagenet/old"
    config.new = "runs/imagenet/new"
    config.transformed = "FCT=runs/imagenet/fct,FastFill=runs/imagenet/fastfill"
    return config
