"""Old, new, FCT and FastFill on the digits, with backfilling curves.

python -m fct_jax.evaluate --config configs/digits_evaluate.py --workdir runs/digits/report
"""

from fct_jax import recipes


def get_config():
    config = recipes.digits(recipes.evaluate())
    config.old = "runs/digits/old"
    config.new = "runs/digits/new"
    config.transformed = "FCT=runs/digits/fct,FastFill=runs/digits/fastfill"
    return config
