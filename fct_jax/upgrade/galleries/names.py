"""File names that contain numbers."""

import re


def natural(name: str) -> list:
    """Return a sort key for natural order: ``part-2`` comes before ``part-10``."""
    return [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", name)]


def numbered(name: str) -> str | None:
    """Return the number that a file's name ends with, without leading zeros; None if it has none.

    ``img_emb_0012.npy``: "12"; it is the number of a shard, and of what belongs to it.
    """
    found = re.fullmatch(r".*?(\d+)\.\w+", name)
    return None if found is None else str(int(found.group(1)))
