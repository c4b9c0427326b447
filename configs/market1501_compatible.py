"""Compatible training for person re-identification: Market-1501, ResNet-50, 256×128 pixels.

Batches of 16 persons × 4 images, mirrored, padded and cropped, and erased at random; smoothed ID
loss after, batch-hard triplet and centre loss before the embedding's BatchNorm; last stage of
stride 1; Adam with warm-up from 1 % of the rate: the settings of "Bag of Tricks and A Strong
Baseline for Deep Person Re-identification" (CVPRW 2019), with an embedding of 256 instead of 2048.
All methods, with and without k-reciprocal re-ranking:

  fct-jax compare configs/market1501_compatible.py \\
      --workdir runs/market1501

It needs data/market1501 with bounding_box_train, query and bounding_box_test of the released
archive, and weights/resnet50.pth from torchvision.

The old model's embeddings, which methods compare with, are those of the whole image: of one that is
in its gallery. AdvBCT's public code trains persons without pad, erase, neck and last_stride=1.

One training, and the cosine that falls to a floor instead of steps:

  python -m fct_jax.train --config configs/market1501_compatible.py --workdir runs/market1501/new \\
      --config.method=none --config.optimizer.schedule.name=cosine \\
      --config.optimizer.schedule.floor=0.002 --config.optimizer.bias_lr_factor=2.0
"""

from fct_jax import recipes


def get_config():
    return recipes.market1501_compatible()


def benchmark():
    """Return what `fct-jax compare` trains and tests on."""
    share, half = "images 0.3", "classes 0.5"
    return {
        # scenario: (changes of the old model's config, changes of the new models')
        "scenarios": {
            "extended-data": ({"data.subset": f"old {share}"}, {"data.subset": f"new {share}"}),
            "extended-class": ({"data.subset": f"old {half}"}, {"data.subset": f"new {half}"}),
        },
        # test set: changes of the config
        "tests": {"Market-1501": {}, "Market-1501 re-ranked": {"reid.rerank": True}},
        "methods": recipes.published_bases(),  # method: changes of its config
        "transformations": {},
    }
