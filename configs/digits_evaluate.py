"""Old, new, FCT and FastFill on the digits, with backfilling curves.

python -m fct_jax.evaluate --config configs/digits_evaluate.py --workdir runs/digits/report
"""

from configs import common


def get_config():
    config = common.digits(common.evaluate())
    config.old = "runs/digits/old"
    config.new = "runs/digits/new"
    config.transformed = "FCT=runs/digits/fct,FastFill=runs/digits/fastfill"
    return config
