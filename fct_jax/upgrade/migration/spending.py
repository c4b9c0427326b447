"""Cost of re-embedding, and its limits: items, tokens and money."""

import contextlib
import threading

from fct_jax.errors import UserError


class Spending:
    """Counts items and tokens; requests that would go beyond a cap are not made.

    Requests under way count as well, with the tokens that they are estimated to take, so that
    several at a time do not overshoot together. Tokens are known only afterwards: by as much as an
    estimate was too low, a cap on tokens or money may be exceeded.
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
        """Count what was spent, now or by an earlier run."""
        with self._lock:
            self.items += items
            self.tokens += tokens

    @property
    def money(self) -> float:
        """Return what has been spent, by the prices that are known."""
        return self._money(self.items, self.tokens)

    def _money(self, items: int, tokens: int) -> float:
        return items * self._item_price + tokens * self._token_price

    @contextlib.contextmanager
    def reserved(self, items: int, tokens: int):
        """Reserve, in a context, a request for some items that takes about so many tokens.

        Raises UserError if it would exceed a cap; the request is not to be made then.
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
                        "raise it and give the same command again to go on"
                    )
            self._items_under_way += items
            self._tokens_under_way += tokens
        try:
            yield
        finally:
            with self._lock:
                self._items_under_way -= items
                self._tokens_under_way -= tokens
