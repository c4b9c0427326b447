"""Find settings under which a training step fits a chip, by compiling it with each of them."""

from collections.abc import Iterator

from fct_jax.compiling.chips import find_chip, topology_mesh
from fct_jax.compiling.compiling import Compiled, compile_programs
from fct_jax.compiling.programs import programs_of
from fct_jax.compiling.stand_ins import Given

_MOST_STEPS = 64


def candidates(config, chips: int) -> Iterator[dict]:
    """Yield changes of a config that save memory, cheapest first; each includes those before it.

    They are bfloat16 activations, then a classifier split over chips, then recomputed activations,
    then fewer cached views, then ever smaller micro-batches.
    """
    changes = {}
    if config.compute_dtype == "float32":
        changes["compute_dtype"] = "bfloat16"
        yield dict(changes)
    if config.task == "compatible" and config.mesh.model == 1 and chips % 4 == 0:
        changes["mesh.model"] = 4
        yield dict(changes)
    if not config.remat:
        changes["remat"] = True
        yield dict(changes)
    views = config.get("views", 1) // 2
    while views:
        changes["views"] = views
        yield dict(changes)
        views //= 2
    steps = config.accumulate_steps * 2
    while steps <= _MOST_STEPS and config.batch_size % (chips * steps) == 0:
        yield {**changes, "accumulate_steps": steps}
        steps *= 2


def nearest_that_fits(
    config, topology: str, given: Given, say=lambda line: None
) -> tuple[dict, Compiled] | None:
    """Return the first changes with which the training step fits, and its figures; or None."""
    chips = topology_mesh(topology).size
    for changes in candidates(config, chips):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(changes)
        said = " ".join(f"{key}={value}" for key, value in changes.items())
        say(f"trying {said}")
        mesh = topology_mesh(topology, changed.mesh.model)
        step = programs_of(changed, mesh, given)[:1]
        (found,) = compile_programs(step, find_chip(topology), mesh.size)
        if found.fits:
            return changes, found
    return None
