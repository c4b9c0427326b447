"""docs/stores.md: its example migrates a real database."""

from pathlib import Path

import doc_blocks
import numpy as np
import pytest

from fct_jax import upgrade


@pytest.mark.slow
def test_the_example_migrates_and_switches(tmp_path, monkeypatch, capsys):
    pytest.importorskip("lancedb", reason="lancedb is not installed (extra lance)")
    from store_apps import OLD, LanceApp, vectors

    from fct_jax.upgrade.stores import open_store

    monkeypatch.chdir(tmp_path)
    app = LanceApp(f"lancedb://{tmp_path / 'vectors'}", "int").filled()
    old = vectors(400, 2)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(OLD, OLD)))[0]
    upgrade.fit(old, (old @ turn).astype(np.float32), method="procrustes", out="map")
    text = (doc_blocks.REPOSITORY / "docs" / "stores.md").read_text()
    (block,) = doc_blocks.blocks(text, "python")
    block = block.replace("lancedb:///data/vectors#items", app.uri)
    before = open_store(app.uri)
    exec(block, {})
    current = capsys.readouterr().out.splitlines()[-1]
    assert current != app.uri
    with open_store(current) as written:
        assert written.count() == before.count() and written.dim == OLD
        sample = before.sample(20)
        moved = written.fetch(sample.ids)
        found = np.stack([moved[id_] for id_ in sample.ids.tolist()])
        np.testing.assert_allclose(found, sample.vectors @ turn, atol=1e-3)
    assert Path("work/journal.jsonl").is_file()
