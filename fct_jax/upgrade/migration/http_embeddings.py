"""Vectors from an HTTP endpoint with the interface of OpenAI's ``/v1/embeddings``.

See https://platform.openai.com/docs/api-reference/embeddings; vLLM, Ollama,
text-embeddings-inference and others have the same interface.
"""

import http.client
import json
import os
import threading
import urllib.error
import urllib.parse
import urllib.request

import numpy as np

from fct_jax.errors import UserError
from fct_jax.runtime.plugins import imported, is_import_name
from fct_jax.upgrade.migration.retrying import Again, Patience, may_pass, retry_after
from fct_jax.upgrade.migration.settings import expanded
from fct_jax.upgrade.migration.spending import Spending

KEYS = ("FCT_JAX_API_KEY", "OPENAI_API_KEY")  # environment variables; the first set one is used
_ONE_BY_ONE = {400, 413, 422}  # the model may refuse a single input of the request
_CHARACTERS = 3  # characters per token, a low estimate


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirection is an error, because the key is meant for the named server only."""

    def redirect_request(self, *arguments):
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


class _Refused(Exception):
    """The server refuses the input of a request."""


class Endpoint:
    """A function from ids to vectors that asks a server.

    Attributes:
      name: the URL without its parts that may be secret.
      refusal: the server's message about the last text that it refused.
    """

    def __init__(self, url: str, asking, spending: Spending, stop: threading.Event):
        """Read the URL; ``stop`` ends waiting for a next attempt."""
        parts = urllib.parse.urlsplit(url)
        query = urllib.parse.parse_qs(parts.query)
        models = query.pop("model", [None])
        self.model = asking.model or models[0]
        if not self.model:
            raise UserError(f"{parts.hostname}: give model, the model's name on the server")
        rest = urllib.parse.urlencode(query, doseq=True)
        place = parts.netloc.rpartition("@")[2]
        self._url = urllib.parse.urlunsplit((parts.scheme, place, parts.path, rest, ""))
        self.name = f"{parts.scheme}://{place}{parts.path} ({self.model})"
        self._texts = texts_of(asking.texts)
        self._timeout, self._spending = asking.timeout, spending
        self._patience = Patience(asking.attempts, stop)
        self._key = next((os.environ[key] for key in KEYS if os.environ.get(key)), None)
        self._lock = threading.Lock()
        self._dim, self.refusal = None, ""

    def __call__(self, ids: np.ndarray) -> list:
        """Return a vector (D,) for each id, None if there is no text or the model refuses it.

        Raises UserError if the server keeps failing or gives an impossible answer.
        """
        texts = self._texts(ids)
        if len(texts) != len(ids):
            raise UserError(f"texts gave {len(texts)} texts for {len(ids)} ids")
        found = [None] * len(ids)
        places = [n for n, text in enumerate(texts) if text is not None]
        for place, vector in zip(places, self._embed([texts[n] for n in places]), strict=True):
            found[place] = vector
        return found

    def _embed(self, texts: list[str]) -> list:
        """Return vectors of texts; a refused request is halved until a single text is left."""
        if not texts:
            return []
        try:
            return self._patiently(texts)
        except _Refused as refusal:
            if len(texts) == 1:
                self.refusal = str(refusal)
                return [None]
            half = len(texts) // 2
            return self._embed(texts[:half]) + self._embed(texts[half:])

    def _patiently(self, texts: list[str]) -> list:
        def once() -> list:
            with self._spending.reserved(len(texts), sum(map(len, texts)) // _CHARACTERS):
                vectors, tokens = self._request(texts)
                self._spending.add(len(texts), tokens)
            return vectors

        return self._patience(self.name, once)

    def _request(self, texts: list[str]) -> tuple[list, int]:
        body = {"model": self.model, "input": texts, "encoding_format": "float"}
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers)
        try:
            with _OPENER.open(request, timeout=self._timeout) as response:
                content = response.read()
        except urllib.error.HTTPError as error:
            with error:
                raise self._failure(error) from None
        except (OSError, http.client.HTTPException) as error:  # refused, cut, too slow
            raise Again(str(getattr(error, "reason", error)) or type(error).__name__) from None
        return self._parsed(content, len(texts))

    def _failure(self, error: urllib.error.HTTPError) -> Exception:
        said = f"status {error.code}, {_said(error)}"
        if may_pass(error.code):
            return Again(said, retry_after(error.headers.get("Retry-After")))
        if error.code in _ONE_BY_ONE:
            return _Refused(said)
        key = "" if self._key else f"; an API key is taken from {' or '.join(KEYS)}"
        return UserError(f"{self.name}: {said}{key * (error.code in (401, 403))}")

    def _parsed(self, content: bytes, count: int) -> tuple[list, int]:
        try:
            answer = json.loads(content)
            data = answer["data"]
            places = [int(entry.get("index", n)) for n, entry in enumerate(data)]
            vectors = [np.asarray(entry["embedding"], np.float32) for entry in data]
            tokens = int((answer.get("usage") or {}).get("total_tokens", 0))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Again("the answer is not a list of embeddings") from None
        if sorted(places) != list(range(count)):
            raise Again(f"the answer has {len(data)} embeddings, or wrong ones, for {count} texts")
        self._check_dimension(vectors)
        ordered = [None] * count
        for place, vector in zip(places, vectors, strict=True):
            ordered[place] = vector
        return ordered, tokens

    def _check_dimension(self, vectors: list) -> None:
        with self._lock:
            for vector in vectors:
                self._dim = vector.shape if self._dim is None else self._dim
                if vector.ndim != 1 or vector.shape != self._dim:
                    raise UserError(
                        f"{self.name} gave vectors of shapes {self._dim} and {vector.shape}"
                    )


def texts_of(where):
    """Return a function from ids to their texts, None for ids that have none.

    Args:
      where: such a function, its ``module:function``, a .jsonl file of ``{"id": …, "text": …}``,
        or None: the ids themselves are the texts.

    Raises:
      UserError: the file cannot be read.
    """
    if where is None:
        return lambda ids: [str(each) for each in ids]
    if callable(where):
        return where
    path = expanded(where)
    if not path.is_file() and is_import_name(where):
        return imported(str(where), "function")
    try:
        records = [json.loads(line) for line in path.read_text().splitlines()]
        texts = {str(record["id"]): record["text"] for record in records}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"texts={where} cannot be read as lines of id and text: {error}") from None
    return lambda ids: [texts.get(str(each)) for each in ids]


def _said(error: urllib.error.HTTPError) -> str:
    """Return the server's message about a failure, in one line."""
    try:
        content = error.read(2000).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        content = ""
    try:
        found = json.loads(content)["error"]
        content = found["message"] if isinstance(found, dict) else found
    except (ValueError, KeyError, TypeError):
        pass
    return " ".join(str(content or error.reason).split())[:200]
