"""Compatible training on Google Landmarks v2, tested on RParis6k, ROxford5k and GLDv2.

To run the published benchmark, with FCT and FastFill beside its methods:

  fct-jax compare configs/gldv2_compatible.py \\
      --workdir runs/gldv2 --scenarios extended-data

It needs data/gldv2 (train/, index/, test/, retrieval_solution_v2.1.csv and train.txt, "path
label" lines of the 1.6 million images of 81,313 landmarks of the cleaned training set),
data/roxford5k and data/rparis6k (gnd_*.pkl and jpg/), and weights/resnet18.pth and
weights/resnet50.pth from torchvision.

Published, mAP self/cross in percent on RParis / ROxford / GLDv2, extended-data, ResNet-18:
old 75.45 / 49.15 / 10.03; new alone 81.15 / 63.85 / 16.48 (self);
AdvBCT 82.78/78.55, 62.13/52.31, 15.71/11.49, P_up 49.55, P_comp 58.09, P_1 53.45.

To run a single training, here of the new model of extended-class:

  python -m fct_jax.train --config configs/gldv2_compatible.py --workdir runs/gldv2/advbct \\
      --config.method=advbct --config.old=runs/gldv2/old --config.data.subset="new classes 0.3"
"""

from fct_jax import recipes


def get_config():
    return recipes.gldv2_compatible()


def benchmark():
    """Return the scenarios, test sets and methods of `fct-jax compare`."""
    large = {"model.name": "resnet50_projection", "pretrained": "weights/resnet50.pth"}
    by_data = {"data.subset": "old images 0.3"}, {"data.subset": "new images 0.3"}
    by_class = {"data.subset": "old classes 0.3"}, {"data.subset": "new classes 0.3"}
    scenarios = {"extended-data": by_data, "extended-class": by_class}
    for name, (old, new) in (("data", by_data), ("class", by_class)):
        scenarios[f"extended-backbone-{name}"] = (old, {**new, **large})
    return {
        # scenario: (changes to the old model's config, changes to the new models' configs)
        "scenarios": scenarios,
        "tests": {  # test set: changes to the data section
            "RParis": {"data.name": "rparis6k", "data.dir": "data/rparis6k"},
            "ROxford": {"data.name": "roxford5k", "data.dir": "data/roxford5k"},
            "GLDv2": {},
        },
        "methods": recipes.published_bases(),  # method: changes to its config
        "transformations": {
            "FCT": recipes.compatible_transformation(recipes.fct()),
            "FastFill": recipes.compatible_transformation(recipes.fastfill()),
        },
    }
