"""A training step holds the collectives that its method needs, and no others."""

import json
from collections import Counter
from pathlib import Path

import cluster
import pytest
from patience import LONG

pytestmark = [pytest.mark.slow(minutes=1), pytest.mark.multiprocess]

BATCH_NORMS = 1 + 2 * 8 + 3  # in the stem, two in each block, and in downsampling
# In the backward pass, sums over the batch: BatchNorm's two, and the gradients of parameters. With
# the latter travel loss and metrics. One that was fused has all its sources' names.
SUMMED = {"reduce_sum", "conv_general_dilated", "dot_general"}


def collectives(folder, *words) -> list[tuple[str, int, str]]:
    return [each for each in instructions(folder, *words) if each[0] != "convolution"]


def instructions(folder, *words) -> list[tuple[str, int, str]]:
    script = Path(cluster.__file__).parent / "count_collectives.py"
    with cluster.started(lambda index: [script, *words], 1, folder, devices=8) as running:
        codes, outputs = cluster.finished(running, folder, LONG)
    assert codes == [0], outputs
    return json.loads(outputs[0].splitlines()[-1])


def operations(source: str) -> set[str]:
    """Return the names of the operations in ``jit(run)/(a/b/op:c/op)``."""
    return {part.rstrip(")").rpartition("/")[2] for part in source.split(":")}


def unneeded(found, batch_norms: int = BATCH_NORMS) -> list[str]:
    """Return descriptions of the collectives that a backbone's step does not need."""
    count = Counter(kind for kind, _, _ in found)
    said = [f"{kind}: {n}" for kind, n in count.items() if kind not in ("all-gather", "all-reduce")]
    gathers = [source for kind, _, source in found if kind == "all-gather"]
    # In the forward pass, each BatchNorm gathers its devices' moments; nothing else is gathered.
    said += [f"gather of {source}" for source in gathers if "bn" not in source.split("/")[-2]]
    if len(gathers) > batch_norms:
        said.append(f"{len(gathers)} gathers for {batch_norms} BatchNorms")
    sums = [source for kind, _, source in found if kind == "all-reduce"]
    said += [f"sum of {source}" for source in sums if not SUMMED.issuperset(operations(source))]
    of_batch_norms = [source for source in sums if "bn" in source]
    if len(of_batch_norms) > batch_norms:
        said.append(f"{len(of_batch_norms)} sums for {batch_norms} BatchNorms")
    if len(sums) - len(of_batch_norms) > 1:
        said.append(f"{len(sums) - len(of_batch_norms)} sums for gradients")
    return said


def test_one_for_each_batch_norm_and_direction(tmp_path):
    found = collectives(tmp_path)
    assert unneeded(found) == []
    assert sum(kind == "all-gather" for kind, _, _ in found) == BATCH_NORMS


def test_normalised_products_exchange_no_more(tmp_path):
    """Of the eight convolutions of two bottlenecks, three widen; two of them are never stored."""
    found = collectives(tmp_path, "half")
    assert unneeded(found, batch_norms=9) == []
    gathers = [source for kind, _, source in found if kind == "all-gather"]
    assert len(gathers) == 9
    assert sum("of_product" in source for source in gathers) == 2


def test_one_more_is_found(tmp_path):
    said = unneeded(collectives(tmp_path, "extra"))
    assert "gather of jit(run)/jvp()/add" in said
    assert any(line.startswith("sum of") and "psum" in line for line in said)


def test_a_split_classifier_stays_split(tmp_path):
    """Of 9,350 classes x 32, devices exchange sums over classes and a few columns of padding."""
    everything = instructions(tmp_path, "split")
    # Each of the eight devices computes the network for its own two of 16 images.
    maps = [size for kind, size, source in everything if kind == "convolution" and source]
    assert set(maps) == {2 * 8 * 8 * 4 * 4}
    found = [each for each in everything if each[0] != "convolution"]
    moments = [each for each in found if each[0] == "all-gather" and "/concatenate" in each[2]]
    assert len(moments) == BATCH_NORMS + 1  # the last is that of the embeddings
    # Four devices share the embeddings and labels of their eight images.
    assert [each[:2] for each in found if "projection_bn/add" in each[2]] == [["all-gather", 1024]]
    assert [each[:2] for each in found if "/squeeze" in each[2]] == [["all-gather", 32]]
    found = [each for each in found if "bn" not in each[2] and "/squeeze" not in each[2]]
    part = 9350 // 4 * 32 * 4  # bytes of the columns of a device
    kinds = Counter(kind for kind, _, _ in found)
    # The best class of each image, for the accuracy.
    gathers = [(size, source) for kind, size, source in found if kind == "all-gather"]
    assert all(size <= 1024 and source.endswith("/reduce") for size, source in gathers)
    # Columns of the parameters are padded to a multiple; the task sees them without, so a few move
    # to the next device, and their gradients back.
    moved = [size for kind, size, _ in found if kind == "collective-permute"]
    assert len(moved) <= 2
    assert max(moved) < 0.1 * part
    # The largest logit and two sums of the softmax; the logit of the label, and the embeddings'
    # gradient; gradients and metrics.
    assert kinds["all-reduce"] <= 4
    assert set(kinds) <= {"all-gather", "all-reduce", "collective-permute"}
