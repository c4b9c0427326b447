"""A table of the figures of compiled programs."""

from collections.abc import Sequence

from fct_jax.compiling.chips import find_chip
from fct_jax.compiling.compiling import Compiled
from fct_jax.runtime.tables import Table


def table(found: Sequence[Compiled], config, topology: str, price: float | None = None) -> Table:
    """Return the programs' figures per chip, one program per column.

    Args:
      found: the compiled programs.
      config: the config that they come from.
      topology: the topology that they are compiled for.
      price: price of a chip for an hour, or None.
    """
    chip = find_chip(topology)
    columns = [_column(each, config, chip, price) for each in found]
    rows = [[name, *(column.get(name, "") for column in columns)] for name in columns[0]]
    title = f"{topology}, {found[0].chips} chips; figures of one chip, times estimated"
    return Table(title, ["", *(each.name for each in found)], rows, text=range(len(found) + 1))


def _column(found: Compiled, config, chip, price: float | None) -> dict[str, str]:
    memory = f"{found.memory / 2**30:.2f} of {chip.memory / 2**30:.0f} GiB"
    made = {"memory": memory if found.fits else f"{memory}: does not fit"}
    if not found.seconds:
        return made
    made["operations"] = f"{found.flops / 1e12:.3f} TFLOP"
    made["read and written"] = f"{found.memory_traffic / 1e9:.2f} GB"
    made["between chips"] = "; ".join(
        f"{count} {kind}, {size / 1e6:.1f} MB" for kind, (count, size) in found.collectives.items()
    )
    made["largest copy"] = f"{found.largest_copy / 1e6:.1f} MB"
    made["time"] = f"{found.seconds * 1e3:.2f} ms, bound by {found.bound}"
    made["share of the peak"] = f"{100 * found.share_of_peak:.0f} %"
    made["rate"] = f"{found.items / found.seconds:,.0f} {found.unit}/s"
    if found.of:
        epoch = found.of / found.items * found.seconds
        made["an epoch"] = _cost(epoch, found.chips, price)
        made["the run"] = _cost(epoch * config.epochs, found.chips, price)
    return made


def _cost(seconds: float, chips: int, price: float | None) -> str:
    text = f"{seconds / 60:.1f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
    return (
        text
        if price is None
        else f"{text}, {seconds / 3600 * chips * price:,.2f} at {price:g} an hour"
    )
