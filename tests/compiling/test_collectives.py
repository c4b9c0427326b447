"""A training step holds the collectives that its method needs, and no others."""

import json
from collections import Counter
from pathlib import Path

import cluster
import pytest
from patience import LONG

pytestmark = [pytest.mark.slow(minutes=0.7), pytest.mark.multiprocess]

BATCH_NORMS = 1 + 2 * 8 + 3  # in the stem, two in each block, and in downsampling
# Gradients, metrics and the loss travel together, but may not all fit into one collective.
FUSED = 3


def collectives(folder, *words) -> list[tuple[str, int, str]]:
    script = Path(cluster.__file__).parent / "count_collectives.py"
    with cluster.started(lambda index: [script, *words], 1, folder, devices=8) as running:
        codes, outputs = cluster.finished(running, folder, LONG)
    assert codes == [0], outputs
    return json.loads(outputs[0].splitlines()[-1])


def unneeded(found) -> list[str]:
    """Return descriptions of the collectives that a backbone's step does not need."""
    count = Counter(kind for kind, _, _ in found)
    said = [f"{kind}: {n}" for kind, n in count.items() if kind not in ("all-gather", "all-reduce")]
    gathers = [source for kind, _, source in found if kind == "all-gather"]
    # In the forward pass, each BatchNorm gathers its devices' moments; nothing else is gathered.
    said += [f"gather of {source}" for source in gathers if "bn" not in source.split("/")[-2]]
    if len(gathers) > BATCH_NORMS:
        said.append(f"{len(gathers)} gathers for {BATCH_NORMS} BatchNorms")
    # In the backward pass, each BatchNorm adds up two sums at once.
    if count["all-reduce"] > BATCH_NORMS + FUSED:
        said.append(f"{count['all-reduce']} all-reduces for {BATCH_NORMS} BatchNorms")
    return said


def test_one_for_each_batch_norm_and_direction(tmp_path):
    found = collectives(tmp_path)
    assert unneeded(found) == []
    assert sum(kind == "all-gather" for kind, _, _ in found) == BATCH_NORMS


def test_one_more_is_found(tmp_path):
    assert "gather of jit(run)/jvp()/add" in unneeded(collectives(tmp_path, "extra"))
