"""Compatible training on the digits; old model, class statistics and new model in three commands:

  python -m fct_jax.train --config configs/digits_compatible.py --workdir runs/compatible/old \\
      --config.method=none --config.data.subset="old images 0.3"
  python -m fct_jax.embed --workdir runs/compatible/old_train \\
      --config.model=runs/compatible/old --config.split=train --config.class_statistics=True
  python -m fct_jax.train --config configs/digits_compatible.py --workdir runs/compatible/new \\
      --config.method=advbct --config.old=runs/compatible/old \\
      --config.statistics=runs/compatible/old_train --config.data.subset="new images 0.3"

The second command may be left out: without config.statistics the third computes the statistics
itself. To compare all methods in all scenarios with FCT and FastFill (under 10 minutes on 2 CPU
cores):

  fct-jax compare configs/digits_compatible.py

mAP self/cross in percent, mean of 3 seeds:

                 extended-class   extended-data   extended-backbone
  old            64.2             91.1            91.1
  new alone      98.1 / 14.2      97.9 / 15.6     96.9 / 22.8
  BCT            95.6 / 57.3      97.8 / 95.1     97.5 / 94.9
  LCE            98.0 / 58.3      98.2 / 95.9     97.3 / 95.1
  Hot-refresh    73.0 / 66.4      90.7 / 90.3     90.5 / 90.3
  UniBCT         79.9 / 56.8      96.8 / 94.3     95.5 / 93.6
  AdvBCT         89.2 / 60.1      97.5 / 95.0     96.8 / 94.5
  FCT            98.1 / 93.5      97.9 / 96.4     96.9 / 95.9
  FastFill       98.1 / 93.1      97.9 / 96.3     96.9 / 95.8

The old model of extended-class is trained from scratch on five digits. Its space separates the
other digits badly, so that among the compatible methods only Hot-refresh beats the old model's own
search.
"""

from fct_jax import recipes


def get_config():
    return recipes.digits_compatible()


def benchmark():
    """Return the scenarios, test sets and methods of `fct-jax compare`."""
    half, share = "classes 0.5", "images 0.3"
    large = {"model.name": "resnet50_projection"}
    return {
        # scenario: (changes to the old model's config, changes to the new models' configs)
        "scenarios": {
            "extended-class": ({"data.subset": f"old {half}"}, {"data.subset": f"new {half}"}),
            "extended-data": ({"data.subset": f"old {share}"}, {"data.subset": f"new {share}"}),
            "extended-backbone": (
                {"data.subset": f"old {share}"},
                {"data.subset": f"new {share}", **large},
            ),
        },
        "tests": {"digits": {}},  # test set: changes to the data section
        "methods": recipes.published_bases(),  # method: changes to its config
        "transformations": {
            "FCT": recipes.digits_transformation(recipes.fct()),
            "FastFill": recipes.digits_transformation(recipes.fastfill()),
        },
    }
