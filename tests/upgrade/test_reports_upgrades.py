"""Tries public reports of upgrades that failed or went wrong unnoticed.

P8  sqlite-vec#8, llama_index#23050, chroma#151      P9  milvus#44320, qdrant#9585
P11 graphiti#1722, semantic-router#2145              P17 immich#30211, #9398, #15590
P19 agentsview#1353, qmd#724, trusty-tools#4906      P22 qdrant/landing_page#2097
P29 pgai#196, hindsight#743
"""

import json
import re
import urllib.error
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_galleries as tiny
from tiny_galleries import as_set

from fct_jax import cli, upgrade
from fct_jax.errors import UserError
from fct_jax.upgrade.checks.doctor import examine
from fct_jax.upgrade.galleries.base import open_gallery
from fct_jax.upgrade.migration import retrying
from fct_jax.upgrade.migration.upgrade import Upgrade

ROOT = Path(__file__).parents[2]
SIZES = {"batch_size": 256, "batch_items": 1000}

# Reports that other tests try, each with the input described there.
ELSEWHERE = {
    "P12": "tests/upgrade/test_mistakes.py::test_every_kind_is_found_and_named",
    "P13": "tests/upgrade/test_assess.py::test_mistakes_are_one_line",
    "P14": "tests/upgrade/test_mistakes.py::test_a_prefix_of_one_side_alone",
    "P20": "tests/upgrade/test_cascades.py::test_a_cut_off_is_in_the_report",
    "P25": "tests/train/test_large_classes.py::test_a_checkpoint_restores_on_another_mesh",
    "P27": "tests/train/test_compatible_inputs.py::test_refusals",
    "P26": "tests/upgrade/test_reports_upgrades.py::test_p26_is_in_the_page",
}


def test_every_report_is_tried():
    """P1 to P29 are tried here, among the files, or by a test named above."""
    files = Path(__file__).parent.glob("test_reports_*.py")
    there = "".join(file.read_text() for file in files)
    names = " ".join(re.findall(r"def test_(p\w+)\(", there))
    named = {f"P{number}" for number in re.findall(r"(?:\b|_)p(\d+)_", names)}
    assert named | set(ELSEWHERE) == {f"P{number}" for number in range(1, 30)}
    for test in ELSEWHERE.values():
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text()


def test_p26_is_in_the_page():
    """The page mentions that on macOS Faiss and PyTorch each bring their own OpenMP."""
    assert "OpenMP" in (ROOT / "docs" / "formats.md").read_text()


def table(path, ids, vectors, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    vectors = pa.array(list(vectors), pa.list_(pa.float32()))
    pq.write_table(pa.table({"id": ids, "vector": vectors, **columns}), path)


def asked(ids, new, missing=()):
    """Return a function of ids that cannot embed those in ``missing``."""
    row, missing = {i: r for r, i in enumerate(ids.tolist())}, set(missing)
    return lambda wanted: [None if i in missing else new[row[i]] for i in wanted.tolist()]


def test_p8_some_zero_and_nan_vectors(tmp_path):
    """Of 10,000 rows, 3 are zero and 2 NaN: 9,995 are upgraded and the others listed."""
    ids, old, new = tiny.vectors(10_000)
    spoiled = old.copy()
    zero, nan = [10, 4000, 9999], [17, 5000]
    spoiled[zero], spoiled[nan, 2] = 0, np.nan
    table(tmp_path / "g" / "a.parquet", ids, spoiled)
    made = Upgrade(tmp_path / "up").apply(
        tiny.plain_map(), tmp_path / "g", reembed=asked(ids, new, ids[zero + nan]), **SIZES
    )
    lines = (tmp_path / "up" / "quarantine.jsonl").read_text().splitlines()
    listed = {(line["id"], line["reason"]) for line in map(json.loads, lines)}
    assert listed == {(int(ids[r]), "zero") for r in zero} | {(int(ids[r]), "NaN") for r in nan}
    good = np.delete(np.arange(10_000), zero + nan)
    np.testing.assert_array_equal(made.rows(good), new[good])
    np.testing.assert_array_equal(np.flatnonzero(made.versions == 0), sorted(zero + nan))
    assert "5 unusable vectors set aside" in str(Upgrade(tmp_path / "up").status())


@pytest.mark.parametrize("kept", ["first", "last"])
def test_p9_one_id_in_two_files(tmp_path, kept):
    ids, old, _ = tiny.vectors(2000)
    table(tmp_path / "g" / "a.parquet", ids[:1000], old[:1000])
    table(tmp_path / "g" / "b.parquet", [ids[7], *ids[1000:]], [old[7] * 2, *old[1000:]])
    run = Upgrade(tmp_path / "up")
    with pytest.raises(UserError, match=f"id {ids[7]} occurs more than once"):
        run.apply(tiny.plain_map(), tmp_path / "g", unchecked=True)
    made = run.apply(
        tiny.plain_map(), tmp_path / "g", unchecked=True, duplicates=kept, batch_size=256
    )
    factor = {"first": 1, "last": 2}[kept]
    row = int(np.flatnonzero(made.ids == ids[7])[0])
    np.testing.assert_allclose(made.rows([row])[0], factor * old[7] @ tiny.weight(), rtol=1e-5)
    assert len(made) == 2000 and sorted(made.ids.tolist()) == sorted(ids.tolist())
    (line,) = (tmp_path / "up" / "quarantine.jsonl").read_text().splitlines()
    found = json.loads(line)
    where = {"first": "b.parquet, row 0", "last": "a.parquet, row 7"}[kept]
    assert (found["reason"], found["where"]) == ("repeated id", where)


def test_p11_a_matryoshka_cut_that_is_not_normalised_again(tmp_path):
    """Of 3,072 normalised dimensions, 1,024 are kept and wrongly declared normalised."""
    ids, old, _ = tiny.vectors(300)
    rows = np.random.default_rng(0).standard_normal((300, 3072)).astype(np.float32)
    rows *= np.linspace(2, 0.5, 3072, dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    gallery = as_set(tmp_path / "old", old, ids)
    cut = as_set(tmp_path / "cut", rows[:, :1024].copy(), ids, normalized=True)
    mapping = tiny.plain_map(matrix=np.zeros((6, 1024), np.float32))
    with pytest.raises(UserError, match="lengths go from 0.7.*Matryoshka.*normalise them again"):
        Upgrade(tmp_path / "up").apply(mapping, gallery, reembed=str(cut))
    found = examine(cut).findings
    assert [finding.kind for finding in found] == ["cut"]


def test_p17_items_that_the_new_model_never_embeds(tmp_path):
    """145 of 34,475 fail for good: the plan ends, they stay translated and are listed."""
    ids, old, new = tiny.vectors(34_475)
    missing = np.random.default_rng(0).permutation(34_475)[:145]
    gallery = as_set(tmp_path / "old", old, ids, fingerprint="old-model")
    run = Upgrade(tmp_path / "up")
    made = run.apply(
        tiny.plain_map(), gallery, reembed=asked(ids, new, ids[missing]), batch_items=8192
    )
    assert (made.meta["state"], made.meta["reembedded"]) == ("finished", 34_475 - 145)
    np.testing.assert_array_equal(np.flatnonzero(made.versions == 0), np.sort(missing))
    np.testing.assert_allclose(made.rows(missing), old[missing] @ tiny.weight(), atol=1e-5)
    lines = (tmp_path / "up" / "unembedded.jsonl").read_text().splitlines()
    assert {json.loads(line)["id"] for line in lines} == set(ids[missing].tolist())
    # The same holds for a set that lacks them.
    there = np.setdiff1d(np.arange(34_475), missing)
    some = as_set(tmp_path / "some", new[there], ids[there])
    made = Upgrade(tmp_path / "up2").apply(tiny.plain_map(), gallery, reembed=str(some))
    assert (made.meta["state"], made.meta["reembedded"]) == ("finished", 34_475 - 145)


class RateLimited(Exception):
    """An error as clients of paid services raise it."""

    status_code = 429


def test_p19_a_function_that_is_sent_away_at_times(tmp_path, monkeypatch):
    """Status 429 at each fifth call is waited out; after another fault the run can resume."""
    monkeypatch.setattr(retrying, "FIRST_WAIT", 0.01)
    ids, old, new = tiny.vectors(2000)
    gallery = as_set(tmp_path / "old", old, ids, fingerprint="old-model")
    answer, calls = asked(ids, new), []

    def busy(wanted):
        calls.append(len(wanted))
        if len(calls) % 5 == 0:
            raise RateLimited("slow down")
        return answer(wanted)

    run = Upgrade(tmp_path / "up")
    some = {"batch_items": 100, "batch_size": 256}
    made = run.apply(tiny.plain_map(), gallery, reembed=busy, max_batches=12, **some)
    assert made.meta["reembedded"] == 1200 and len(calls) > 15

    def wrong(fault):
        def call(wanted):
            raise fault

        return call

    for fault, message in (
        (RateLimited("slow down"), "failed at attempt 3 of 3.*RateLimited: slow down"),
        (ConnectionError("no route"), "failed at attempt 3 of 3.*ConnectionError: no route"),
        (urllib.error.HTTPError("http://x", 503, "busy", {}, None), "failed at attempt 3 of 3"),
        (ValueError("no such text"), r"^\S+ failed on 100 ids .*ValueError: no such text"),
    ):
        with pytest.raises(UserError, match=message):
            run.apply(reembed=wrong(fault), attempts=3, unchecked=True, **some)
    with pytest.raises(UserError, match="gave 99 answers for 100 ids"):
        run.apply(reembed=lambda wanted: answer(wanted)[:-1], unchecked=True, **some)
    assert run.apply(reembed=answer, **some).versions.all()


def test_p19_silent_gaps(tmp_path):
    """39 of 1,241 items without a vector are counted and listed, not passed over."""
    ids, old, new = tiny.vectors(1241)
    gallery = as_set(tmp_path / "old", old, ids, fingerprint="old-model")
    run = Upgrade(tmp_path / "up")
    run.apply(tiny.plain_map(), gallery, reembed=asked(ids, new, ids[::32]), **SIZES)
    assert "39 could not be embedded and stay translated" in str(run.status())


def test_p22_rows_that_come_and_go_after_the_plan(tmp_path, capsys):
    """Files with other rows are refused, with advice; new files are upgraded on their own."""
    ids, old, new = tiny.vectors(2500)
    table(tmp_path / "g" / "a.parquet", ids[:2000], old[:2000])
    where = as_set(tmp_path / "new", new, ids)
    run = Upgrade(tmp_path / "up")
    run.plan(tiny.plain_map(), tmp_path / "g", batch_size=256)
    run.apply(reembed=where, batch_items=500, max_batches=2)
    table(tmp_path / "g" / "b.parquet", ids[2000:], old[2000:])
    table(tmp_path / "g" / "a.parquet", ids[100:2000], old[100:2000])
    with pytest.raises(UserError, match="upgrade of another gallery.*gallery_ids") as caught:
        run.apply(reembed=where)
    assert "give the unchanged gallery" in str(caught.value) and "\n" not in str(caught.value)
    assert open_gallery(tmp_path / "up" / "gallery", unfinished=True).versions.sum() == 1000
    # The new rows are a separate gallery, upgraded by the same map.
    delta = Upgrade(tmp_path / "delta").apply(
        tiny.plain_map(), tmp_path / "g" / "b.parquet", reembed=where
    )
    np.testing.assert_array_equal(delta.read(0, 500), new[2000:])


def test_p29_no_texts_to_embed_again(tmp_path):
    """Translation alone works from two samples to a gallery that can be searched."""
    ids, old, new = tiny.vectors(2000)
    sample = {name: as_set(tmp_path / name, part[:500], ids[:500]) for name, part in
              (("sample_old", old), ("sample_new", new))}  # fmt: skip
    gallery = as_set(tmp_path / "old", old, ids)
    h = upgrade.fit(
        sample["sample_old"], sample["sample_new"], method="ridge", out=tmp_path / "map"
    )
    assert h.dim_out == 5
    words = [str(tmp_path / "up"), "--map", str(tmp_path / "map"), "--gallery", str(gallery)]
    assert cli.main(["plan", *words]) == 0
    assert cli.main(["apply", str(tmp_path / "up")]) == 0
    made = open_gallery(tmp_path / "up" / "gallery")
    np.testing.assert_allclose(made.read(0, 2000), old @ tiny.weight(), atol=0.3)
    assert Upgrade(tmp_path / "up").status().state == "translated"


def test_p29_no_pairs_either(tmp_path):
    ids, old, new = tiny.vectors(200)
    old = as_set(tmp_path / "old", old[:100], ids[:100])
    new = as_set(tmp_path / "new", new[100:], ids[100:])
    with pytest.raises(UserError, match="share 0 ids.*without any pairs.*--method unpaired"):
        upgrade.fit(old, new)
