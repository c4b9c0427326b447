"""Compatible training for person re-identification: Market-1501, ResNet-50, 256×128 pixels.

The settings are those of "Bag of Tricks and A Strong Baseline for Deep Person Re-identification"
(CVPRW 2019), with an embedding of 256 instead of 2048 dimensions: batches of 16 persons × 4 images,
which are mirrored, padded and cropped, and erased at random; a label-smoothed ID loss after the
embedding's BatchNorm, batch-hard triplet and centre losses before it; a last stage of stride 1; and
Adam with a warm-up from 1 % of the rate. To compare all methods, with and without k-reciprocal
re-ranking:

  fct-jax compare configs/market1501_compatible.py \\
      --workdir runs/market1501

It needs data/market1501 with bounding_box_train, query and bounding_box_test of the released
archive, and weights/resnet50.pth from torchvision.

The old embeddings that the methods use are those of whole images, as an old gallery has them.
AdvBCT's public code trains re-identification without pad, erase, neck and last_stride=1.

To run a single training, with a cosine that falls to a floor instead of steps:

  python -m fct_jax.train --config configs/market1501_compatible.py --workdir runs/market1501/new \\
      --config.method=none --config.optimizer.schedule.name=cosine \\
      --config.optimizer.schedule.floor=0.002 --config.optimizer.bias_lr_factor=2.0
"""

from fct_jax import recipes


def get_config():
    return recipes.market1501_compatible()


def benchmark():
    """Return the scenarios, test sets and methods of `fct-jax compare`."""
    share, half = "images 0.3", "classes 0.5"
    return {
        # scenario: (changes to the old model's config, changes to the new models' configs)
        "scenarios": {
            "extended-data": ({"data.subset": f"old {share}"}, {"data.subset": f"new {share}"}),
            "extended-class": ({"data.subset": f"old {half}"}, {"data.subset": f"new {half}"}),
        },
        # test set: changes to the config
        "tests": {"Market-1501": {}, "Market-1501 re-ranked": {"reid.rerank": True}},
        "methods": recipes.published_bases(),  # method: changes to its config
        "transformations": {},
    }
