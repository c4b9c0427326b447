"""Compatible training on the digits; old model, class statistics and new model in three commands:

  python -m fct_jax.train --config configs/digits_compatible.py --workdir runs/compatible/old \\
      --config.method=none --config.data.subset="old images 0.3"
  python -m fct_jax.embed --config configs/embed.py --workdir runs/compatible/old_train \\
      --config.model=runs/compatible/old --config.split=train --config.class_statistics=True
  python -m fct_jax.train --config configs/digits_compatible.py --workdir runs/compatible/new \\
      --config.method=advbct --config.old=runs/compatible/old \\
      --config.statistics=runs/compatible/old_train --config.data.subset="new images 0.3"

The second may be left out: without config.statistics the third computes them itself. All methods
in all scenarios, beside FCT and FastFill (about 8 minutes on 2 CPU cores):

  python tools/benchmark_compatible.py --config configs/digits_compatible.py
"""

from configs import common


def get_config():
    return common.digits_compatible()


def benchmark():
    """What tools/benchmark_compatible.py trains and tests on."""
    half, share = "classes 0.5", "images 0.3"
    large = {"model.name": "resnet50_projection"}
    return {
        # scenario: (changes of the old model's config, changes of the new models')
        "scenarios": {
            "extended-class": ({"data.subset": f"old {half}"}, {"data.subset": f"new {half}"}),
            "extended-data": ({"data.subset": f"old {share}"}, {"data.subset": f"new {share}"}),
            "extended-backbone": (
                {"data.subset": f"old {share}"},
                {"data.subset": f"new {share}", **large},
            ),
        },
        "tests": {"digits": {}},  # test set: changes of the data section
        "transformations": {
            "FCT": common.digits_transformation(common.fct()),
            "FastFill": common.digits_transformation(common.fastfill()),
        },
    }
