"""The PyTorch entry of each Flax variable, for every model that can be imported.

A table is a list of `Entry`, in the order of the original's ``state_dict``. Tables are built from
a layout (number of blocks, positions of projections), which is inferred from the names present.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Entry(NamedTuple):
    """One array: its PyTorch name, its place among the Flax variables, and its form.

    Forms: "conv" (out, in, h, w) <-> (h, w, in, out); "linear" (out, in) <-> (in, out);
    "pointwise" (out, in, 1, 1) <-> (in, out); "vector" unchanged; "counter" PyTorch's
    ``num_batches_tracked``, which Flax has no use for.
    """

    torch: str
    path: tuple[str, ...]
    form: str


BASIC_DEPTHS = ((2, 2, 2, 2),)
BOTTLENECK_DEPTHS = ((3, 4, 6, 3), (3, 4, 23, 3))


def batch_norm(torch: str, path: tuple[str, ...]) -> list[Entry]:
    return [
        Entry(f"{torch}.weight", ("params", *path, "scale"), "vector"),
        Entry(f"{torch}.bias", ("params", *path, "bias"), "vector"),
        Entry(f"{torch}.running_mean", ("batch_stats", *path, "mean"), "vector"),
        Entry(f"{torch}.running_var", ("batch_stats", *path, "var"), "vector"),
        Entry(f"{torch}.num_batches_tracked", (), "counter"),
    ]


def kernel(torch: str, path: tuple[str, ...], form: str) -> Entry:
    return Entry(f"{torch}.weight", ("params", *path, "kernel"), form)


def bias(torch: str, path: tuple[str, ...]) -> Entry:
    return Entry(f"{torch}.bias", ("params", *path, "bias"), "vector")


class ResNetLayout(NamedTuple):
    """Blocks per stage, convolutions per block (2 or 3), and the blocks with a projection."""

    depths: tuple[int, ...]
    convolutions: int
    projected: frozenset[tuple[int, int]]


def resnet_layout(blocks: Iterable[tuple[int, int, str]]) -> ResNetLayout:
    """Return the nearest layout for the (stage, index, part) triples found; stages count from 1.

    If blocks are missing, the layout has the smallest known depth that holds all the others, so
    that the gap shows as missing names.
    """
    blocks = list(blocks)
    convolutions = 3 if any(part.startswith("conv3") for _, _, part in blocks) else 2
    seen = [max((i for s, i, _ in blocks if s == stage), default=0) + 1 for stage in (1, 2, 3, 4)]
    known = BOTTLENECK_DEPTHS if convolutions == 3 else BASIC_DEPTHS
    fitting = [d for d in known if all(n <= m for n, m in zip(seen, d, strict=True))]
    depths = fitting[0] if fitting else known[-1]
    projected = {(stage, 0) for stage in (2, 3, 4)}
    projected |= {(s, i) for s, i, part in blocks if part.startswith("downsample")}
    if convolutions == 3:
        projected.add((1, 0))
    return ResNetLayout(depths, convolutions, frozenset(projected))


def trunk(layout: ResNetLayout, prefix: str = "") -> Iterator[Entry]:
    """Yield the entries of everything up to the last feature maps."""
    yield kernel(f"{prefix}conv1", ("conv1",), "conv")
    yield from batch_norm(f"{prefix}bn1", ("bn1",))
    for stage, depth in enumerate(layout.depths, 1):
        for index in range(depth):
            torch, block = f"{prefix}layer{stage}.{index}", f"layer{stage}_{index}"
            for i in range(1, layout.convolutions + 1):
                yield kernel(f"{torch}.conv{i}", (block, f"conv{i}"), "conv")
                yield from batch_norm(f"{torch}.bn{i}", (block, f"bn{i}"))
            if (stage, index) in layout.projected:
                yield kernel(f"{torch}.downsample.0", (block, "downsample_conv"), "conv")
                yield from batch_norm(f"{torch}.downsample.1", (block, "downsample_bn"))


def resnet(layout: ResNetLayout) -> list[Entry]:
    return [*trunk(layout), kernel("fc", ("classifier",), "pointwise")]


def transformation(uncertainty: bool) -> list[Entry]:
    table = []
    if uncertainty:
        table.append(kernel("uncertainty_head", ("uncertainty_head",), "linear"))
        table.append(bias("uncertainty_head", ("uncertainty_head",)))
    for torch in ("p1.0", "p1.1", "p2.0", "p2.1", "mixer.0", "mixer.1"):
        layer = torch.replace(".", "_")
        table.append(kernel(f"{torch}.conv", (layer, "linear"), "pointwise"))
        table.extend(batch_norm(f"{torch}.normalizer", (layer, "bn")))
    table.append(kernel("mixer.2.conv", ("mixer_2",), "pointwise"))
    table.append(bias("mixer.2.conv", ("mixer_2",)))
    return table


def compatible(layout: ResNetLayout) -> list[Entry]:
    """Return an AdvBCT checkpoint's entries: backbone, projection with BatchNorm, classifier."""
    return [
        *trunk(layout, "convnet."),
        kernel("projection_dim", ("projection",), "linear"),
        *batch_norm("bn", ("projection_bn",)),
        kernel("projection_cls", ("classifier",), "linear"),
    ]


def discriminator() -> list[Entry]:
    table = []
    for layer in ("fc1", "fc2"):
        table += [kernel(f"d_{layer}", (layer,), "linear"), bias(f"d_{layer}", (layer,))]
    return table + batch_norm("d_bn1", ("bn1",))


def lce_transformation(blocks: int) -> list[Entry]:
    table = []
    for block in range(blocks):
        for layer in range(3):
            # The original is a flat sequence of linear, BatchNorm and ReLU.
            torch = f"rbt.{block}.{3 * layer}"
            table.append(kernel(torch, (f"block{block}_fc{layer}",), "linear"))
            table.append(bias(torch, (f"block{block}_fc{layer}",)))
            table += batch_norm(f"rbt.{block}.{3 * layer + 1}", (f"block{block}_bn{layer}",))
    return table
