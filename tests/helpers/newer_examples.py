"""The worked examples of the newer methods; they record which entries a test has read."""

import json
from pathlib import Path

import numpy as np

PATH = Path(__file__).parents[1] / "golden" / "newer" / "examples.json"
EXAMPLES = json.loads(PATH.read_text())
WORDS = {"note", "identity_limit", "total_formula"}  # entries with explanations instead of numbers


class Example:
    """One example; `unread` names the entries that no test has read."""

    def __init__(self, name: str):
        self._content, self._read = EXAMPLES[name], set(WORDS)

    def __getitem__(self, key: str):
        """Return an entry, with lists of numbers as float64 arrays."""
        self._read.add(key)
        value = self._content[key]
        if isinstance(value, list) and not isinstance(value[0], str | dict | bool):
            try:
                return np.asarray(value, np.float64)
            except (TypeError, ValueError):
                return value
        return value

    @property
    def unread(self) -> set[str]:
        return set(self._content) - self._read


def close(got, wanted) -> None:
    """Assert equality to 1e-9, absolutely and relatively: the examples have 12 digits."""
    np.testing.assert_allclose(np.asarray(got, np.float64), wanted, rtol=1e-9, atol=1e-9)
