"""URIs of stores, which hold no secret, are parsed once, and give one-line errors."""

import dataclasses
import re
from urllib.parse import parse_qsl, unquote, urlsplit

from fct_jax.errors import UserError

_SECRETS = re.compile(r"pass(word|wd|file)?|.*(api_?key|token|secret|credential).*", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Uri:
    """A parsed store URI, safe to show, to log and to keep in a journal.

    Attributes:
      text: the URI as it was given.
      scheme: the part before ``://``, such as ``qdrant``.
      user, host, port: those of the server; "", "" and None if the URI has none.
      path: the path with its slash, such as ``/db``; "" if there is none.
      name: the part after ``#``, or "".
      params: the query's parameters, each of which occurs once.
    """

    text: str
    scheme: str
    user: str
    host: str
    port: int | None
    path: str
    name: str
    params: dict[str, str]

    def __str__(self) -> str:
        return self.text

    def only(self, *known: str) -> None:
        """Raise UserError if there is a parameter that is not in ``known``."""
        for name in self.params:
            if name not in known:
                some = ", ".join(known) or "none"
                raise UserError(f"{self}: unknown parameter {name!r}; known: {some}")

    def with_name(self, name: str) -> str:
        """Return the URI text of another name in the same place: ``…#name``, or ``…/name``."""
        if self.name or not self.host:
            return f"{self.text.partition('#')[0]}#{name}"
        place, mark, query = self.text.partition("?")
        return f"{place.rstrip('/').rpartition('/')[0]}/{name}{mark}{query}"

    def without(self, *params: str) -> str:
        """Return the URI text without some of its parameters."""
        place, _, rest = self.text.partition("?")
        query, mark, name = rest.partition("#")
        kept = [part for part in query.split("&") if part.partition("=")[0] not in params]
        return f"{place}{'?' if any(kept) else ''}{'&'.join(kept)}{mark}{name}"


def parse(text: str) -> Uri:
    """Parse a store URI.

    Raises UserError if it is not a store URI, or if it contains a password, key or token: command
    lines end up in histories, process lists and reports. The message never repeats a secret.

    >>> parse("qdrant://localhost:6333/items").port
    6333
    """
    scheme, mark, rest = str(text).partition("://")
    if not mark or not scheme:
        raise UserError(
            f"{text!r} is not the URI of a store, such as qdrant://localhost:6333/items"
        )
    try:
        # urlsplit does not accept every scheme of ours ("module:name"), so it gets a neutral one.
        parts = urlsplit("store://" + rest)
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise UserError(f"{scheme}://… is not a well-formed URI") from None
    hidden = f"{scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    inside = bool(parts.netloc.rpartition("@")[0].partition(":")[2])
    named = next((name for name, _ in pairs if _SECRETS.fullmatch(name)), None)
    if inside or named:
        what = "a password" if inside else f"the secret {named!r}"
        raise UserError(
            f"{hidden} carries {what}; keep secrets in the environment (PGPASSWORD, "
            "QDRANT_API_KEY, MILVUS_TOKEN, AWS_SECRET_ACCESS_KEY) or in ~/.pgpass"
        )
    params = dict(pairs)
    if len(params) < len(pairs):
        raise UserError(f"{hidden}: a parameter is given twice")
    where = parts.netloc.rpartition("@")[2]
    if where.startswith(":") and where.endswith(":"):  # qdrant://:memory:/items
        host, port = where, None
    else:
        try:
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise UserError(f"{hidden}: the port is not a number up to 65535") from None
        # A bucket's name keeps its case.
        host = re.search(re.escape(host), where, re.IGNORECASE)[0] if host else ""
    return Uri(
        text=str(text),
        scheme=scheme,
        user=unquote(parts.username or ""),
        host=host,
        port=port,
        path=unquote(parts.path),
        name=unquote(parts.fragment),
        params=params,
    )
