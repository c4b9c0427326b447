"""Sources of re-embedded vectors: an EmbeddingSet, a function of ids, an HTTP endpoint."""

import dataclasses
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from fct_jax.errors import UserError
from fct_jax.runtime.plugins import imported, is_import_name
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.storage.ids import Finder, first_ten
from fct_jax.storage.named import vectors_of
from fct_jax.upgrade.migration.retrying import Patience, again_of
from fct_jax.upgrade.migration.spending import Spending
from fct_jax.upgrade.stores import is_store, open_store


@dataclasses.dataclass(frozen=True)
class Asking:
    """Settings for asking functions and endpoints for vectors.

    Attributes:
      texts: for an endpoint: ``module:function`` from ids to texts (None for an id without one),
        such a function, or a .jsonl file of ``{"id": …, "text": …}``; None: the ids are the texts.
      model: the endpoint's model, by its name on the server; ``?model=`` in the URL sets it, too.
      parallel: number of requests (by default 4) or calls of a function (1) at a time.
      per_request: items in one request to an endpoint.
      attempts: number of attempts before a request or a call fails, if its error is temporary:
        status 408, 409, 425, 429 or 5xx, or no connection.
      timeout: seconds to wait for an endpoint's answer.
      max_items, max_tokens, max_money: limits for the whole upgrade; None: no limit.
      cost_per_1000: price of 1,000 items.
      cost_per_million_tokens: price of a million tokens, as the endpoint counts them.
    """

    texts: str | Callable | None = None
    model: str | None = None
    parallel: int | None = None
    per_request: int = 64
    attempts: int = 6
    timeout: float = 60.0
    max_items: int | None = None
    max_tokens: int | None = None
    max_money: float | None = None
    cost_per_1000: float | None = None
    cost_per_million_tokens: float | None = None

    def check(self) -> None:
        """Raise UserError for an impossible value."""
        for key in ("parallel", "per_request", "attempts"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise UserError(f"{key} must be 1 or more, not {getattr(self, key)}")
        for key in ("max_items", "max_tokens", "max_money"):
            value = getattr(self, key)
            if value is not None and not 0 <= value < np.inf:
                raise UserError(f"{key} must be 0 or more, not {value}")
        if self.max_money is not None and not (self.cost_per_1000 or self.cost_per_million_tokens):
            raise UserError("max_money needs cost_per_1000 or cost_per_million_tokens")


@dataclasses.dataclass(frozen=True)
class Answer:
    """The outcome of asking for n ids.

    Attributes:
      vectors: (m, D) vectors of the ids that could be embedded.
      found: (m,) int64, places of these among the ids, ascending.
      asked: number of ids, from the first on, that were answered; the others can be asked for
        again.
      error: reason why the rest was not answered; None if all were.
    """

    vectors: np.ndarray
    found: np.ndarray
    asked: int
    error: UserError | None = None


class NewVectors:
    """The new model's vectors by id.

    Attributes:
      name: name for messages.
      meta: known facts about the vectors, as in ``meta.json``; {} for a function.
      known: ids that have vectors; None: any.
      spending: cost so far, and its limits.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[np.ndarray], Sequence],
        meta: dict | None = None,
        known: np.ndarray | None = None,
        spending: Spending | None = None,
        parallel: int = 1,
        per_request: int | None = None,
        stop: threading.Event | None = None,
    ):
        """Take a function from ids (n,) to vectors, with None for ids without one.

        known: ids that have vectors; None: any.
        parallel: number of calls of the function at a time.
        per_request: largest number of ids in one call; None: no limit.
        stop: is set when a call has failed, so that other calls stop.
        """
        self.name, self.meta, self._function, self.known = name, meta or {}, function, known
        self._find = None if known is None else Finder(known)
        self.spending = spending or Spending()
        self._parallel, self._per_request = parallel, per_request
        self._stop = stop or threading.Event()

    def __call__(self, ids: np.ndarray) -> Answer:
        """Ask for the vectors of some ids.

        An error after some of the ids is part of the answer, because these may have been paid for.
        """
        has = self.has(ids)
        places = np.flatnonzero(has)
        size = -(-len(places) // self._parallel) or 1
        size = min(size, self._per_request or size)
        pieces = [places[start : start + size] for start in range(0, len(places), size)]
        self._stop.clear()
        answers, error = _in_order(
            lambda piece: self._ask(ids[piece]), pieces, self._parallel, self._stop
        )
        asked = len(ids) if error is None else int(pieces[len(answers)][0])
        found, vectors = [], []
        for piece, answer in zip(pieces, answers, strict=False):
            for place, vector in zip(piece, answer, strict=True):
                if vector is not None:
                    found.append(place)
                    vectors.append(vector)
        try:
            made = np.asarray(vectors)
        except ValueError:
            raise UserError(f"{self.name} gave vectors of different dimensions") from None
        return Answer(made, np.array(found, np.int64), asked, error)

    def _ask(self, ids: np.ndarray):
        try:
            answer = self._function(ids)
        except UserError:
            raise
        except Exception as error:  # whatever a user's function raises
            raise failed(self.name, ids, error) from error
        if not hasattr(answer, "__len__") or len(answer) != len(ids):
            shape = np.shape(answer) if isinstance(answer, np.ndarray) else f"{len(answer)} answers"
            kind = f"{answer.dtype} " if isinstance(answer, np.ndarray) else ""
            raise UserError(f"{self.name} gave {kind}{shape} for {len(ids)} ids")
        return answer

    def has(self, ids: np.ndarray) -> np.ndarray:
        """Return (n,) bool: True for ids that can have a vector."""
        return np.ones(len(ids), bool) if self._find is None else self._find(ids) >= 0

    def check_some(self, ids: np.ndarray) -> None:
        """Raise UserError if there are vectors for none of some ids."""
        if len(ids) and not self.has(ids).any():
            raise UserError(f"{self.name} has no vectors for {first_ten(ids)} of the plan")


def _in_order(
    ask: Callable, pieces: list, parallel: int, stop: threading.Event
) -> tuple[list, UserError | None]:
    """Return the answers to pieces in their order until the first that fails, and its error."""
    answers = []
    if parallel == 1 or len(pieces) < 2:
        for piece in pieces:
            try:
                answers.append(ask(piece))
            except UserError as error:
                return answers, error
        return answers, None

    def unless_stopped(piece):
        if stop.is_set():
            return None  # a piece after one that failed: pieces start in their order
        try:
            return ask(piece)
        except BaseException:
            stop.set()  # avoid further costs
            raise

    with ThreadPoolExecutor(parallel) as pool:
        futures = [pool.submit(unless_stopped, piece) for piece in pieces]
        try:
            for future in futures:
                answers.append(future.result())
        except UserError as error:
            return answers, error
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
    return answers, None


def failed(name: str, ids: np.ndarray, error: BaseException) -> UserError:
    """Return the error of a function that was asked for some ids, in one line."""
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return UserError(f"{name} failed on {first_ten(ids)}: {said}")


def name_of(where) -> str:
    """Return the name of a function, or of ``module:function``, for messages."""
    return getattr(where, "__name__", "the function") if callable(where) else str(where)


def function_of(where) -> Callable:
    """Return a function that is given as itself or by its name. Raises UserError."""
    function = where if callable(where) else imported(str(where), "function")
    if not callable(function):
        raise UserError(f"reembed={where} is not a function")
    return function


def open_reembed(where, asking: Asking | None = None) -> NewVectors:
    """Open a source of new vectors.

    Args:
      where: vectors of any form that ``vectors_of`` reads; the URI of a store;
        ``module:function`` or a function from ids (n,) to their vectors (n, D), with None in place
        of a missing vector; or the URL of an endpoint like OpenAI's ``/v1/embeddings``. The current
        directory is searched for modules.
      asking: settings for functions and endpoints.

    Raises:
      UserError: there is no such source.
    """
    asking = asking or Asking()
    asking.check()
    spending = Spending(
        asking.max_items,
        asking.max_tokens,
        asking.max_money,
        asking.cost_per_1000,
        asking.cost_per_million_tokens,
    )
    if isinstance(where, str) and where.startswith(("http://", "https://")):
        from fct_jax.upgrade.migration.http_embeddings import Endpoint

        stop = threading.Event()
        endpoint = Endpoint(where, asking, spending, stop)
        return NewVectors(
            endpoint.name,
            endpoint,
            spending=spending,
            parallel=asking.parallel or 4,
            per_request=asking.per_request,
            stop=stop,
        )
    if is_store(where):
        return _of_store(open_store(where))
    if not callable(where) and not is_import_name(where):
        return _of_set(vectors_of(where, "reembed"))
    function, name = function_of(where), name_of(where)
    stop = threading.Event()
    patience = Patience(asking.attempts, stop)

    def patient(ids: np.ndarray):
        def once():
            with spending.reserved(len(ids), 0):
                try:
                    answer = function(ids)
                except Exception as error:
                    if (again := again_of(error)) is None:
                        raise
                    raise again from error
                spending.add(len(ids), 0)
            return answer

        return patience(f"{name}, asked for {first_ten(ids)},", once)

    parallel = asking.parallel or 1
    return NewVectors(name, patient, spending=spending, parallel=parallel, stop=stop)


def _of_store(store) -> NewVectors:
    from fct_jax.upgrade.stores.samples import possible, space_of

    def vectors(ids: np.ndarray) -> list:
        found = store.fetch(possible(store, ids))
        return [found.get(one) for one in ids.tolist()]

    return NewVectors(str(store.uri), vectors, space_of(store))


def _of_set(found: EmbeddingSet) -> NewVectors:
    find = Finder(found.ids)

    def vectors(ids: np.ndarray) -> np.ndarray:
        return np.asarray(found.vectors[find(ids)], np.float32)

    return NewVectors(found.name, vectors, found.meta, found.ids)
