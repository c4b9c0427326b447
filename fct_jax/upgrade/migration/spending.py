"""Cost of re-embedding, and its limits: items, tokens and money."""

import contextlib
import threading

from fct_jax.errors import UserError


class Spending:
    """Counts items and tokens; requests that would exceed a limit are not made.

    Running requests count as well, with their estimated tokens, so that several at a time do not
    exceed the limit together. Tokens are known only afterwards: if an estimate was too low, a
    limit on tokens or money may be exceeded by the difference.
    """

    def __init__(
        self,
        max_items: int | None = None,
        max_tokens: int | None = None,
        max_money: float | None = None,
        cost_per_1000: float | None = None,
        cost_per_million_tokens: float | None = None,
    ):
        self._caps = {"items": max_items, "tokens": max_tokens, "money": max_money}
        self._item_price = (cost_per_1000 or 0) / 1000
        self._token_price = (cost_per_million_tokens or 0) / 1e6
        self.items = self.tokens = 0
        self._items_under_way = self._tokens_under_way = 0
        self._lock = threading.Lock()

    def add(self, items: int, tokens: int) -> None:
        """Count the cost of this or an earlier run."""
        with self._lock:
            self.items += items
            self.tokens += tokens

    def _money(self, items: int, tokens: int) -> float:
        return items * self._item_price + tokens * self._token_price

    @contextlib.contextmanager
    def reserved(self, items: int, tokens: int):
        """Reserve a request for some items and an estimated number of tokens, as a context.

        Raises UserError if it would exceed a limit; the request must then not be made.
        """
        with self._lock:
            all_items = self.items + self._items_under_way + items
            all_tokens = self.tokens + self._tokens_under_way + tokens
            would_be = {
                "items": all_items,
                "tokens": all_tokens,
                "money": self._money(all_items, all_tokens),
            }
            for what, cap in self._caps.items():
                if cap is not None and would_be[what] > cap * (1 + 1e-9):
                    raise UserError(
                        f"max_{what}={cap:g} would be exceeded by the next request: "
                        f"{self.items:,} items and {self.tokens:,} tokens are spent; "
                        "raise the limit and repeat the command to resume"
                    )
            self._items_under_way += items
            self._tokens_under_way += tokens
        try:
            yield
        finally:
            with self._lock:
                self._items_under_way -= items
                self._tokens_under_way -= tokens
