"""Sources of new vectors: items that cannot be embedded, failures, and costs."""

import contextlib
import http.server
import json
import threading
import time

import numpy as np
import pytest
import tiny_galleries as tiny
from patience import LONG
from tiny_galleries import as_set, contents

from fct_jax.errors import UserError
from fct_jax.upgrade.galleries.base import open_gallery
from fct_jax.upgrade.migration import http_embeddings, retrying
from fct_jax.upgrade.migration.reembed import Asking, open_reembed
from fct_jax.upgrade.migration.upgrade import Upgrade

COUNT = 300
SIZES = {"batch_size": 16, "batch_items": 40}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return paths of a gallery in each form and of all new vectors, and the arrays."""
    return tiny.made_galleries(tmp_path_factory.mktemp("galleries"), COUNT)


class Source:
    """A function of ids that cannot embed those of ``missing``."""

    def __init__(self, made, missing=()):
        self.row = {i: r for r, i in enumerate(made[2])}
        self.new, self.missing, self.asked = made[4], set(missing), []

    def __call__(self, ids):
        self.asked.append(len(ids))
        return [None if i in self.missing else self.new[self.row[i]] for i in ids]


@pytest.mark.parametrize("form", tiny.FORMS)
def test_items_that_cannot_be_embedded_are_tried_again(made, tmp_path, form):
    """They stay translated, are listed, never stop the plan, and roll back with their batch."""
    paths, _, ids, old, new = made
    mapped = old @ tiny.weight()
    missing = ids[[3, 50, 51, 299]]
    source = Source(made, missing)
    upgrade = Upgrade(tmp_path)
    gallery = upgrade.apply(tiny.plain_map(), paths[form], reembed=source, **SIZES)

    def is_as(without):
        expected = np.where(np.isin(ids, without)[:, None], mapped, new)
        now = open_gallery(tmp_path / "gallery", unfinished=True)
        np.testing.assert_allclose(now.read(0, COUNT), expected, atol=1e-6)
        np.testing.assert_array_equal(now.versions == 0, np.isin(ids, without))

    is_as(missing)
    assert (gallery.meta["state"], gallery.meta["reembedded"]) == ("finished", COUNT - 4)
    status = upgrade.status()
    assert (status.state, status.reembedded, status.unembedded) == ("finished", COUNT - 4, 4)
    assert "4 could not be embedded and stay translated" in str(status)
    listed = (tmp_path / "unembedded.jsonl").read_text().splitlines()
    assert {json.loads(line)["id"] for line in listed} == set(missing.tolist())
    finished = contents(tmp_path / "gallery")

    again = Source(made, missing[:1])
    upgrade.apply(reembed=again)
    assert again.asked[-1] == 4  # the sample of known answers comes first
    is_as(missing[:1])
    assert upgrade.status().unembedded == 1
    upgrade.apply(reembed=Source(made))
    is_as([])
    assert not (tmp_path / "unembedded.jsonl").exists() and upgrade.status().unembedded == 0
    # The two later runs were separate batches.
    assert upgrade.status().batches == 8 + 2
    assert upgrade.rollback(9) == COUNT - 1
    is_as(missing[:1])
    assert upgrade.rollback(8) == COUNT - 4
    is_as(missing)
    assert contents(tmp_path / "gallery").keys() == finished.keys()
    upgrade.apply(reembed=Source(made))
    is_as([])


def test_a_source_that_has_nothing(made, tmp_path):
    """If a whole batch has no vector, the source is at fault, not its items."""
    paths, _, ids, *_ = made
    upgrade = Upgrade(tmp_path)
    upgrade.apply(tiny.plain_map(), paths["set"], reembed=Source(made), max_batches=1, **SIZES)
    before = contents(tmp_path / "gallery")
    with pytest.raises(UserError, match="the function could embed none of 40 ids"):
        upgrade.apply(reembed=Source(made, ids), **SIZES)
    assert contents(tmp_path / "gallery") == before
    upgrade.apply(reembed=Source(made))
    assert upgrade.status().state == "finished"


def test_a_few_failures_of_the_model_are_no_fault(tmp_path):
    """An item stays translated if NaN is one of two thousand; for more the batch is refused."""
    count = 2000
    ids, old, new = tiny.vectors(count)
    path = as_set(tmp_path / "old", old, ids, fingerprint="old-model")
    row = {i: r for r, i in enumerate(ids)}

    def failing(rows):
        wrong = new.copy()
        wrong[rows] = np.nan
        return lambda wanted: wrong[[row[i] for i in wanted]]

    upgrade = Upgrade(tmp_path / "up")
    with pytest.raises(UserError, match="gave NaN or infinity for 3 ids"):
        upgrade.apply(tiny.plain_map(), path, reembed=failing([7, 70, 700]), unchecked=True)
    upgrade.apply(reembed=failing([7]), unchecked=True)
    status = upgrade.status()
    assert (status.state, status.reembedded, status.unembedded) == ("finished", count - 1, 1)


@pytest.mark.parametrize("parallel", [1, 3])
def test_a_cap_on_items_keeps_what_was_paid_for(made, tmp_path, parallel):
    paths = made[0]
    upgrade = Upgrade(tmp_path)
    upgrade.plan(tiny.plain_map(), paths["set"], batch_size=16)
    kept = {"batch_items": 40, "parallel": parallel, "unchecked": True}
    with pytest.raises(UserError, match=r"max_items=400 would be exceeded by the next request"):
        upgrade.apply(reembed=Source(made), max_items=400, **kept)
    status = upgrade.status()
    # 256 of them were spent on known answers, before anything was written.
    assert 80 <= status.reembedded <= 400 - 256 and status.state == "migrating"
    with pytest.raises(UserError, match=r"max_money=0.5 would be exceeded"):
        upgrade.apply(reembed=Source(made), max_money=0.5, cost_per_1000=1.25, **kept)
    assert upgrade.status().reembedded == status.reembedded  # 0.5 for 400 items is spent already
    upgrade.apply(reembed=Source(made), max_money=10, cost_per_1000=1.25, **kept)
    assert upgrade.status().state == "finished"


class Server:
    """An embeddings server on loopback that misbehaves as it is told.

    Attributes:
      script: the answers to the next requests, in order: a status, or the name of a misbehaviour.
      requests: the requests that came, as (texts, headers, time).
      refused: texts that it answers with status 400.
    """

    def __init__(self, vectors):
        self.script, self.requests, self.refused = [], [], set()
        self.headers, self.most, self._now = {}, 0, 0
        lock, outer, three = threading.Lock(), self, threading.Barrier(3)

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                with lock:
                    outer._now += 1
                    outer.most = max(outer.most, outer._now)
                status, content = self._answer()
                with lock:  # before the answer, after which the client may send its next request
                    outer._now -= 1
                self._send(status, content)

            def _answer(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                texts = body["input"]
                with lock:
                    outer.requests.append((texts, dict(self.headers), time.monotonic()))
                    what = outer.script.pop(0) if outer.script else "well"
                if outer.refused & set(texts):
                    what = 400
                if isinstance(what, int):
                    content = json.dumps({"error": {"message": f"told to say {what}"}}).encode()
                    return what, content
                if what == "cut":
                    return 200, None
                if what == "slow":
                    with contextlib.suppress(OSError):
                        self.rfile.read(1)  # until the client has given up
                    return 200, None
                if what == "three":  # there are three requests at this moment, and time for more
                    three.wait(LONG)
                    time.sleep(0.2)
                data = [{"index": n, "embedding": vectors[t].tolist()} for n, t in enumerate(texts)]
                if what == "turned":
                    data = data[::-1]
                if what == "fewer":
                    data = data[:-1]
                if what == "twice":
                    data[-1] = data[0]
                if what == "short":
                    data = [{**d, "embedding": d["embedding"][:-1]} for d in data]
                content = {"data": data, "usage": {"total_tokens": 10 * len(texts)}}
                text = json.dumps(content) if what != "no JSON" else "<html>busy</html>"
                return 200, text.encode()

            def _send(self, status, content):
                """Send an answer; content: None cuts it off."""
                self.send_response(status)
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "1000" if content is None else str(len(content)))
                self.end_headers()
                self.wfile.write(b'{"data": [' if content is None else content)

            def log_message(self, *arguments):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/embeddings?model=m"

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=LONG)


@pytest.fixture
def server(made, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for key in http_embeddings.KEYS:
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr(retrying, "FIRST_WAIT", 0.01)
    found = Server({str(i): vector for i, vector in zip(made[2], made[4], strict=True)})
    yield found
    found.close()


def opened(server, **asking):
    return open_reembed(server.url, Asking(**{"parallel": 1, "per_request": 10, **asking}))


def answered(made, source, count=30):
    """Return whether a source gives the new vectors of the first ids in order."""
    answer = source(made[2][:count])
    if answer.error is not None:
        raise answer.error
    np.testing.assert_array_equal(answer.found, np.arange(count))
    np.testing.assert_array_equal(answer.vectors.astype(np.float32), made[4][:count])
    return True


@pytest.mark.parametrize(
    "wrong", [429, 500, 503, 408, "cut", "slow", "turned", "fewer", "twice", "no JSON"]
)
def test_a_server_that_misbehaves_for_a_while(made, server, wrong):
    server.script = ["well", wrong, wrong]
    if wrong == "slow":
        assert answered(made, opened(server, timeout=0.3, attempts=1000))
        assert len(server.requests) >= 5  # more if a busy machine takes so long for one
        return
    assert answered(made, opened(server, timeout=LONG))
    assert len(server.requests) == (3 if wrong == "turned" else 5)


@pytest.mark.parametrize(
    "wrong, message, requests",
    [
        (500, r"failed at attempt 3 of 3: status 500, told to say 500", 3),
        ("fewer", r"failed at attempt 3 of 3: the answer has 9 embeddings", 3),
        (401, r"status 401, .*; an API key is taken from FCT_JAX_API_KEY or OPENAI_API_KEY", 1),
        (404, r"status 404, told to say 404$", 1),
        (307, r"status 307, told to say 307$", 1),
    ],
)
def test_a_server_that_goes_on_failing(made, server, wrong, message, requests):
    server.script = [wrong] * 9
    with pytest.raises(UserError, match=message) as caught:
        answered(made, opened(server, attempts=3))
    assert len(server.requests) == requests and "\n" not in str(caught.value)


def test_vectors_of_different_dimensions(made, server):
    server.script = ["well", "short"]
    with pytest.raises(UserError, match=r"gave vectors of shapes \(5,\) and \(4,\)"):
        answered(made, opened(server))


def test_retry_after(made, server):
    """Retry-After in seconds or as a date is waited for, but only within reason."""
    server.script, server.headers = [429], {"Retry-After": "0.4"}
    assert answered(made, opened(server), 10)
    (_, _, first), (_, _, second) = server.requests
    assert second - first >= 0.4
    assert retrying.retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    far = retrying.retry_after("Fri, 31 Dec 2049 23:59:59 GMT")
    patience = retrying.Patience(6, threading.Event())
    assert far > 1e8 and patience.wait(1, far) == 300
    assert retrying.retry_after("soon") is None
    waits = [patience.wait(attempt, None) for attempt in (1, 2, 30)]
    assert 0.005 <= waits[0] <= 0.01 <= waits[1] <= 0.02 and 15 <= waits[2] <= 30


def test_requests_are_parallel_within_a_limit(made, server):
    server.script = ["three"] * 30
    assert answered(made, opened(server, parallel=3, per_request=5, timeout=LONG), 60)
    assert server.most == 3 and max(len(texts) for texts, _, _ in server.requests) == 5


def test_a_text_that_is_refused_costs_no_other(made, server):
    ids = made[2]
    server.refused = {str(ids[4]), str(ids[17])}
    answer = opened(server)(ids[:30])
    np.testing.assert_array_equal(answer.found, np.delete(np.arange(30), [4, 17]))
    np.testing.assert_array_equal(
        answer.vectors.astype(np.float32), np.delete(made[4][:30], [4, 17], axis=0)
    )


def test_texts_and_the_key(made, server, tmp_path, monkeypatch, capfd):
    ids = made[2]
    lines = [json.dumps({"id": int(i), "text": str(i)}) + "\n" for i in ids[:20] if i != ids[2]]
    (tmp_path / "texts.jsonl").write_text("".join(lines))
    monkeypatch.setenv("OPENAI_API_KEY", "a-secret")
    answer = opened(server, texts=tmp_path / "texts.jsonl")(ids[:20])
    assert len(answer.found) == 19 and 2 not in answer.found
    assert server.requests[0][1]["Authorization"] == "Bearer a-secret"
    server.script = [403]
    source = opened(server)
    with pytest.raises(UserError, match=r"\(m\): status 403, told to say 403$") as caught:
        answered(made, source)
    said = str(caught.value) + source.name + "".join(capfd.readouterr())
    assert "a-secret" not in said
    with pytest.raises(UserError, match="cannot be read as lines of id and text"):
        opened(server, texts=tmp_path / "nothing.jsonl")
    with pytest.raises(UserError, match="give model, the model's name on the server"):
        open_reembed("http://127.0.0.1:1/v1/embeddings")


@pytest.mark.slow
def test_an_upgrade_by_a_server_that_fails_in_between(made, server, tmp_path):
    """Vectors that were paid for are kept; the same call resumes, to the same bytes."""
    paths = made[0]
    where = as_set(tmp_path / "new", made[4], made[2])
    asked = {"per_request": 8, "parallel": 2, "attempts": 2, "batch_items": 40}
    Upgrade(tmp_path / "whole").apply(
        tiny.plain_map(), paths["set"], reembed=where, batch_size=16, batch_items=40
    )
    upgrade = Upgrade(tmp_path / "up")
    upgrade.plan(tiny.plain_map(), paths["set"], batch_size=16)
    upgrade.apply(reembed=server.url, max_batches=1, **asked)
    server.script = ["well"] * 8 + [500] * 100
    with pytest.raises(UserError, match=r"failed at attempt \d of 2: status 500"):
        upgrade.apply(reembed=server.url, **asked)
    done = upgrade.status().reembedded
    assert 80 <= done < COUNT
    server.script = []
    with pytest.raises(UserError, match="max_tokens=5000 would be exceeded by the next request"):
        upgrade.apply(reembed=server.url, max_tokens=5000, **asked)
    assert done < upgrade.status().reembedded < COUNT
    gallery = upgrade.apply(reembed=server.url, max_tokens=20_000, **asked)
    assert gallery.meta["state"] == "finished"
    np.testing.assert_array_equal(gallery.read(0, COUNT), made[4])
    whole, here = contents(tmp_path / "whole" / "gallery"), contents(tmp_path / "up" / "gallery")
    assert here["vectors.npy"] == whole["vectors.npy"]
