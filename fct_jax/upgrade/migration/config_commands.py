"""The subcommands of ``python -m fct_jax.upgrade`` by a config; they go when that command goes."""

from fct_jax.upgrade.migration.upgrade import Upgrade

_SHARED = ("map", "gallery", "probe", "batch_size", "id_column", "vector_column")


def _given(config, section: str = "", skip: tuple = ()) -> dict:
    values = {key: config[key] for key in _SHARED}
    if section:
        values |= dict(config[section])
    # In a config "" and 0 stand for "not given".
    return {key: value for key, value in values.items() if value and key not in skip}


def plan_command(config, workdir):
    """Plan with the values of ``fct_jax.config.upgrade``."""
    settings = {"serve": config.serve, "seed": config.seed, **_given(config, "plan")}
    return Upgrade(workdir).plan(**settings)


def apply_command(config, workdir):
    """Apply with the values of ``fct_jax.config.upgrade``."""
    made = Upgrade(workdir).apply(**_given(config, "apply"))
    print(f"{made.name}: {len(made):,} vectors, {made.meta['state']}")
    return made


def status_command(config, workdir):
    """Print the status."""
    found = Upgrade(workdir).status(probe=config.probe or None)
    print(found)
    return found


def rollback_command(config, workdir) -> int:
    """Roll back to the batch ``rollback_to``."""
    return Upgrade(workdir).rollback(config.rollback_to)
