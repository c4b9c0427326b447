"""URIs of stores: their parts, and that no secret is ever shown."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fct_jax.errors import UserError
from fct_jax.upgrade.stores import is_store, open_store
from fct_jax.upgrade.stores.base import client
from fct_jax.upgrade.stores.uri import parse

SECRET = "hunter2-Zq9"


def test_parts():
    uri = parse("postgresql://me@db.example:5433/shop?table=a.items&host=/tmp/sock")
    assert (uri.scheme, uri.user, uri.host, uri.port) == ("postgresql", "me", "db.example", 5433)
    assert uri.path == "/shop" and uri.params == {"table": "a.items", "host": "/tmp/sock"}
    assert parse("lancedb:///data/dir#items").name == "items"
    assert parse("s3://My-Bucket/dir#items").host == "My-Bucket"
    assert parse("qdrant://:memory:/items").host == ":memory:"
    assert parse("milvus:///a%20b.db#items").path == "/a b.db"


@pytest.mark.parametrize(
    ("uri", "want"),
    [
        ("qdrant://host:6333/items?https=1&vector=a", "qdrant://host:6333/new?https=1"),
        ("qdrant://:memory:/items", "qdrant://:memory:/new"),
        ("qdrant:///folder?vector=a#items", "qdrant:///folder#new"),
        ("lancedb:///dir?id=key#items", "lancedb:///dir?id=key#new"),
        ("s3://bucket/dir#items", "s3://bucket/dir#new"),
        ("milvus:///file.db#items", "milvus:///file.db#new"),
        ("milvus://host/items?db=shop", "milvus://host/new?db=shop"),
    ],
)
def test_the_name_of_another_collection_there(uri, want):
    assert parse(parse(uri).without("vector")).with_name("new") == want


def test_what_is_a_store():
    for text in (
        "qdrant://host/items",
        "s3://bucket/dir#items",
        "mine.stores:Elastic://host/items",
    ):
        assert is_store(text)
    files = ("folder/items", "s3://bucket/dir", "gs://bucket/dir#part", "hf://datasets/a/b", "C:/x")
    for text in (*files, "file:///data/items.parquet", "qdrannt://host/items", ""):
        assert not is_store(text)


@pytest.mark.parametrize(
    "uri",
    [
        f"postgresql://me:{SECRET}@host/db?table=items",
        f"postgresql://host/db?table=items&password={SECRET}",
        f"qdrant://host:6333/items?api_key={SECRET}",
        f"qdrant://host:6333/items?API-KEY={SECRET}&apikey={SECRET}",
        f"milvus://root:{SECRET}@host:19530/items",
        f"milvus://host:19530/items?token={SECRET}",
        f"s3://bucket/dir?aws_secret_access_key={SECRET}#items",
        f"s3://key:{SECRET}@bucket/dir#items",
    ],
)
def test_secrets_are_refused_and_not_repeated(uri, caplog):
    with caplog.at_level(logging.DEBUG), pytest.raises(UserError) as error:
        open_store(uri)
    assert "environment" in str(error.value) and "\n" not in str(error.value)
    assert SECRET not in str(error.value) and SECRET not in caplog.text
    assert error.value.__cause__ is None


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("items", "not the URI of a store"),
        ("qdrannt://host/items", "did you mean 'qdrant'"),
        ("qdrant://host:notaport/items", "port is not a number"),
        ("qdrant://host:99999/items", "port is not a number"),
        ("postgresql://host/db?table", "not a well-formed URI"),
        ("qdrant://host/items?vector=a&vector=b", "given twice"),
        ("no.such.module:Store://host/items", "no.such.module:Store: there is no such module"),
        ("fct_jax.errors:Missing://host/items", "'Missing'"),
    ],
)
def test_mistakes_take_one_line(uri, message):
    with pytest.raises(UserError, match=message) as error:
        open_store(uri)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("uri", "module", "message"),
    [
        ("postgresql://me@127.0.0.1:1/db?table=items", "psycopg", "cannot open"),
        ("postgresql://me@127.0.0.1:1/db", "psycopg", "names no table"),
        ("postgresql://me@127.0.0.1:1/db?table=items&colour=red", "psycopg", "unknown parameter"),
        ("qdrant://127.0.0.1:1/items", "qdrant_client", "cannot open"),
        ("lancedb:///nowhere/at/all#items", "lancedb", "no folder /nowhere/at/all"),
        ("lancedb:///tmp", "lancedb", "names no table"),
        ("milvus:///nowhere/at/all.db#items", "pymilvus", "no folder /nowhere/at"),
    ],
)
def test_servers_that_are_not_there(uri, module, message):
    pytest.importorskip(module, reason=f"{module} is not installed")
    with pytest.raises(UserError, match=message) as error:
        open_store(uri)
    assert "\n" not in str(error.value)


def test_a_missing_client_says_what_to_install():
    with pytest.raises(UserError, match=r"pip install 'fct_jax\[pgvector\]'"):
        client("no_such_client", "pgvector")


def test_a_store_of_ones_own():
    assert open_store("plugin_store:opened://host/items") == ("host", "/items")


@given(st.text(max_size=60))
def test_any_text_is_parsed_or_refused_in_one_line(text):
    try:
        parse(text)
        parse("qdrant://" + text)
    except UserError as error:
        assert "\n" not in str(error) or "\n" in text


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
@pytest.mark.parametrize(
    ("uri", "module", "variable"),
    [
        ("qdrant://127.0.0.1:1/items", "qdrant_client", "QDRANT_API_KEY"),
        ("milvus://127.0.0.1:1/items", "pymilvus", "MILVUS_TOKEN"),
        ("postgresql://me@127.0.0.1:1/db?table=items", "psycopg", "PGPASSWORD"),
    ],
)
def test_what_the_environment_holds_is_not_shown(uri, module, variable, monkeypatch, caplog):
    pytest.importorskip(module, reason=f"{module} is not installed")
    monkeypatch.setenv(variable, f"me:{SECRET}")
    monkeypatch.setattr("fct_jax.upgrade.stores.milvus.TIMEOUT", 2)
    with caplog.at_level(logging.DEBUG), pytest.raises(UserError, match="cannot open") as error:
        open_store(uri)
    assert SECRET not in str(error.value) + caplog.text
