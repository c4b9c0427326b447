"""Checks of the settings of an assessment, before anything long begins."""

from pathlib import Path

from fct_jax.errors import UserError, unknown
from fct_jax.evaluate.orders import find_order
from fct_jax.storage.files import check_free
from fct_jax.upgrade.inputs import FEWEST
from fct_jax.upgrade.ways import WAYS
from fct_jax.upgrade.ways.relevance import METRICS


def is_plain(value) -> bool:
    """Return whether a value can be written in a report."""
    return value is None or isinstance(value, str | int | float | Path | tuple | list)


def check_settings(given: dict) -> None:
    """Raise UserError for numbers out of range, unknown names, and files that exist already."""
    for name in ("out", "runs_out"):
        if given[name] is not None:
            check_free(given[name])
    if given["popularity"] and given["traffic"] is not None:
        raise UserError("popularity and traffic both say how queries repeat: give one of them")
    if given["target"] and given["target"] not in METRICS:
        raise unknown("target", given["target"], METRICS)
    if not given["ways"]:
        raise UserError(f"ways must be some of {', '.join(WAYS)}")
    for order in given["orders"]:
        find_order(order)
    for name, least in (
        ("depth", 0),
        ("max_queries", FEWEST),
        ("resamples", 1),
        ("gallery_size", 0),
        ("items_per_second", 0),
        ("cost_per_1000", 0),
        ("popularity", 0),
        ("embeddings_a_query", 0),
    ):
        if given[name] is not None and not given[name] >= least:
            raise UserError(f"{name} must be {least} or more, not {given[name]}")


def checked_shares(shares) -> tuple[float, ...]:
    """Return the shares in order, with 0 and 1. Raises UserError for one out of range."""
    shares = tuple(sorted({0.0, 1.0, *(float(share) for share in shares)}))
    if shares[0] < 0 or shares[-1] > 1:
        raise UserError(f"shares must be between 0 and 1, not {shares}")
    return shares
