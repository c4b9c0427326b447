"""Upgrade a gallery of vectors to another embedding model, of any make.

  python -m fct_jax.upgrade fit    --config configs/upgrade.py --workdir upgrade/map    \\
      --config.old=sample_old --config.new=sample_new
  python -m fct_jax.upgrade assess --config configs/upgrade.py --workdir upgrade/report \\
      --config.old=sample_old --config.new=sample_new --config.map=upgrade/map

Then plan, apply, status and rollback; docs/upgrade.md leads through all of them.
"""

from fct_jax import config as defaults


def get_config():
    return defaults.upgrade()
