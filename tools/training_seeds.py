"""Compare our compatible training with the published step in PyTorch, over several seeds.

  python tools/training_seeds.py                      # Hot-refresh, two epochs, eight seeds
  python tools/training_seeds.py --method none --epochs 5 --seeds 4
  python tools/training_seeds.py --starts here rounded    # without other initial weights

One old model is trained on 30 % of the digits. Then, for every seed, new models are trained on all
digits: one with fct_jax ("here"), and others in PyTorch with the step of AdvBCT's code (model,
losses, SGD and BatchNorm of PyTorch itself). The latter start from the same initial weights with
the same batches; from weights that differ from these in their last binary digit; from PyTorch's own
initial weights; and from those of timm, from which the published code takes its trunks. Images,
batch size, learning rate, the dropped last batch and the old embeddings are the same. The table
gives the mean and standard deviation of the mAP over the seeds, in percent. Two epochs of
Hot-refresh with eight seeds gave

                                               new/new        new/old
  here                                      45.4 ± 5.1     22.5 ± 4.4
  PyTorch, weights and batches of here      48.8 ± 6.6     24.1 ± 7.0
  the same, weights changed by rounding     45.1 ± 8.1     23.3 ± 6.0
  PyTorch, initial weights of PyTorch       48.4 ± 5.4     20.8 ± 1.9
  PyTorch, initial weights of timm          50.3 ± 6.3     22.7 ± 4.9

  mean of the paired differences with its 95 % interval, and the largest
  PyTorch minus here                        +3.4 ± 3.2     +1.6 ± 2.5    (7.9, 6.6)
  rounding alone, in PyTorch                -3.8 ± 4.9     -0.8 ± 2.6    (16.3, 6.6)

so that a change in the last digit moves a training by more than the two programs differ. In
float64, where rounding has no room to grow, they agree: with half of the blocks,
`tests/tools/test_training_seeds.py` checks that after an epoch the weights agree to 1e-5 of their
size (1e-8 was measured), and those of a model trained alone to 1e-9 (6e-14 was measured).
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).parent.parent))  # run as a file or as a module

from fct_jax import data, recipes
from fct_jax.embed.images import embed_images
from fct_jax.evaluate.metrics import retrieval_metrics
from fct_jax.frozen.model import load_model
from fct_jax.runtime import sharding
from fct_jax.train.compatible.task import Compatible
from fct_jax.train.image_batches import preprocessing_of
from fct_jax.train.loop import train
from fct_jax.train.optimizer import build_optimizer
from fct_jax.train.state import fresh_state
from tools.pytorch.check import load_strictly
from tools.pytorch.parts import to_torch
from tools.script import Parser, status

METHODS = ("hot_refresh", "none")
HERE, ROUNDED = "here", "rounded"
ROWS = {  # init -> row of the table
    HERE: "PyTorch, weights and batches of here",
    ROUNDED: "the same, weights changed by rounding",
    "PyTorch": "PyTorch, initial weights of PyTorch",
    "timm": "PyTorch, initial weights of timm",
}
PAIRS = (  # name, row, subtracted row
    ("PyTorch minus here", ROWS[HERE], "here"),
    ("rounding alone, in PyTorch", ROWS[ROUNDED], ROWS[HERE]),
)


def settings(arguments, **changes):
    """Return the config of a training on 16-px digits."""
    config = recipes.digits_compatible()
    config.epochs = arguments.epochs
    config.optimizer.lr = 0.1
    config.optimizer.schedule.name = "multistep"
    config.optimizer.schedule.warmup_epochs = 0
    config.batch_size = 64
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return config


def images_of(config, split: str):
    """Return (images float32 (N, H, W, 3) as the model takes them, labels (N,))."""
    source = data.open_source(config.data, split)
    preprocessing = preprocessing_of(config.preprocessing)
    found = data.load_all(source, preprocessing)
    return np.array(preprocessing.on_device(found["image"])), found["label"]


def start_of(config):
    """Return the initial weights of our training under PyTorch's names, and its batches.

    The batches are indices (steps, B) of training images, one row per step.
    """
    mesh = sharding.make_mesh()
    task = Compatible(config, mesh)
    per_epoch = task.feed.steps_per_epoch
    optimizer = build_optimizer(config.optimizer, config.epochs, per_epoch)
    variables = fresh_state(task, optimizer, config.seed, mesh).variables
    batches = [
        np.asarray(call)[:steps]
        for epoch in range(config.epochs)
        for steps, call in task.feed.calls(epoch * per_epoch)
    ]
    task.feed.close()
    return to_torch(task.describe(), task.export(variables)), np.concatenate(batches)


def torch_run(config, old_embeddings, seed: int, init: str, images, labels, test_images):
    """Train with the published step, and return the embeddings of the test images.

    ``init`` is "PyTorch" or "timm", HERE for the weights and batches of our own training, or
    ROUNDED for these with every weight moved up or down by its last binary digit. Everything is
    computed in the precision of ``images`` (N, H, W, 3).
    """
    import torch
    from torch.nn import functional

    from tools.pytorch.models import ProjectionResNet

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    model = ProjectionResNet(
        config.model.name.removesuffix("_projection"),
        num_classes=int(labels.max()) + 1,
        embedding_dim=config.model.embedding_dim,
        small_stem=True,
        width=config.model.width,
    )
    batches = None
    if init == "timm":
        _init_as_timm(model.convnet)
    elif init in (HERE, ROUNDED):
        weights, batches = start_of(config)
        if init == ROUNDED:
            rng = np.random.default_rng(seed)
            weights = {name: _nudged(weight, rng) for name, weight in weights.items()}
        load_strictly(model, weights)
    model.to(torch.from_numpy(images[:0]).dtype)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=config.optimizer.lr,
        momentum=config.optimizer.momentum,
        weight_decay=config.optimizer.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [5, 10, 20], gamma=0.1)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    y, old = (
        torch.from_numpy(labels).long(),
        torch.from_numpy(np.asarray(old_embeddings, images.dtype)),
    )
    size = config.batch_size
    steps = len(x) // size  # drop_last=True, as published
    model.train()
    for epoch in range(config.epochs):
        if batches is None:
            order = torch.randperm(len(x))[: steps * size].reshape(steps, size)
        else:
            order = torch.from_numpy(batches[epoch * steps : (epoch + 1) * steps]).long()
        for rows in order:
            embedding = model(x[rows])
            loss = functional.cross_entropy(model.projection_cls(embedding), y[rows])
            if config.method == "hot_refresh":
                loss = loss + _hot_refresh(embedding, old[rows], y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        return model(torch.from_numpy(test_images).permute(0, 3, 1, 2).contiguous()).numpy()


def _nudged(weight, rng):
    """Return the next float32 of each weight, up or down."""
    weight = np.asarray(weight)
    return np.nextafter(weight, rng.choice([-np.inf, np.inf], weight.shape).astype(np.float32))


def _hot_refresh(embedding, old, labels, temperature: float = 0.01, top_k: int = 10):
    import torch
    from torch.nn import functional

    new, old = functional.normalize(embedding), functional.normalize(old)
    same = labels[:, None] == labels[None, :]
    own = (new * old).sum(1, keepdim=True)
    against = [new @ old.T, new @ new.detach().T]  # gathered embeddings carry no gradient
    hardest = [torch.topk(scores - 1e9 * same, top_k)[0] for scores in against]
    logits = torch.cat([own, *hardest], 1) / temperature
    return functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))


def _init_as_timm(trunk) -> None:
    """Initialise by He's normal (fan-out), with a zero scale at the end of each block."""
    from torch import nn

    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    for stage in (trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4):
        for block in stage:
            nn.init.zeros_(block.bn2.weight)


def measured(new, old, labels) -> tuple[float, float]:
    """Return mAP in percent of new/new and of new/old, leave-one-out."""
    options = {"metric": "cosine", "ks": (1,)}
    self_, cross = (retrieval_metrics(new, g, labels, **options)["map"] for g in (new, old))
    return 100 * self_, 100 * cross


def parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--method", choices=METHODS, default="hot_refresh")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--starts", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--workdir", type=Path, help="keeps the runs (default: a temporary folder)")
    return parser


def run(arguments, workdir: Path) -> None:
    whole = argparse.Namespace(epochs=12)
    old_config = settings(whole, method="none", **{"data.subset": "old images 0.3"})
    old_config.optimizer.schedule.name = "cosine"
    train(old_config, workdir / "old")
    old = load_model(workdir / "old")
    config = settings(arguments, method=arguments.method)
    images, labels = images_of(config, "train")
    test_images, test_labels = images_of(config, "validation")
    sets = {}
    for split in ("train", "validation"):
        source = data.open_source(config.data, split)
        sets[split] = np.asarray(embed_images(old, source, workdir / f"old-{split}").vectors)
    results: dict[str, list] = {}

    def note(name: str, vectors) -> None:
        results.setdefault(name, []).append(measured(vectors, sets["validation"], test_labels))

    for seed in range(arguments.seeds):
        where = workdir / f"new-{seed}"
        changes = {"seed": seed, "old": str(workdir / "old")}
        train(settings(arguments, method=arguments.method, **changes), where)
        source = data.open_source(config.data, "validation")
        made = embed_images(load_model(where), source, where / "validation")
        note("here", np.asarray(made.vectors))
        with config.unlocked():
            config.seed, config.old = seed, str(workdir / "old")
        for init in arguments.starts:
            name = ROWS[init]
            vectors = torch_run(config, sets["train"], seed, init, images, labels, test_images)
            note(name, vectors)
        for name, values in results.items():
            print(f"seed {seed}: {name} {values[-1][0]:.1f} / {values[-1][1]:.1f}", file=sys.stderr)
    self_, cross = measured(sets["validation"], sets["validation"], test_labels)
    print(f"{arguments.method}, {arguments.epochs} epochs, {arguments.seeds} seeds; mAP in %")
    print(f"{'':40} {'new/new':>14} {'new/old':>14}")
    print(f"{'old model':40} {self_:>14.1f} {cross:>14.1f}")
    for name, values in results.items():
        mean, spread = np.mean(values, 0), np.std(values, 0, ddof=min(1, len(values) - 1))
        cells = [f"{m:.1f} ± {s:.1f}" for m, s in zip(mean, spread, strict=True)]
        print(f"{name:40} {cells[0]:>14} {cells[1]:>14}")
    print(f"paired differences, 95 % of their means{'':1} (largest)")
    for title, row, other in PAIRS:
        if row in results and other in results and arguments.seeds > 1:
            print(f"{title:40}", *paired(results[row], results[other]))


def paired(values, others) -> list[str]:
    """Return the mean of the differences with its 95 % interval (Student's t), and the largest."""
    difference = np.array(values) - np.array(others)
    count = len(difference)
    half = stats.t.ppf(0.975, count - 1) * difference.std(0, ddof=1) / np.sqrt(count)
    largest = np.abs(difference).max(0)
    found = zip(difference.mean(0), half, largest, strict=True)
    return [f"{m:+6.2f} ± {h:.2f} ({most:.2f})" for m, h, most in found]


def main(words) -> None:
    """Compare in the given folder, or in a temporary one."""
    arguments = parser().parse_args(words)
    if arguments.workdir is not None:
        run(arguments, arguments.workdir)
    else:
        with tempfile.TemporaryDirectory() as folder:
            run(arguments, Path(folder))


if __name__ == "__main__":
    sys.exit(status(main))
