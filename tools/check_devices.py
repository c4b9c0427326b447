"""Check that several devices train as one device does, for every task, on simulated CPU devices.

    python tools/check_devices.py [--devices 1,2,8] [--tasks backbone,advbct] [--steps 20]

Each task trains from the same seed with the same global batch on every number of devices ("8m2" is
eight devices, of which pairs share the classifier), on digits, with a network of one block. The
table gives the largest differences from the first number of devices: of the loss in any step, and
of the parameters and BatchNorm statistics after the last step. The latter are relative to the
largest entry of their array (at least 0.1). The exit status is 1 if a difference is above 1e-4. All
tasks together take about 7 minutes on two cores.

The network is wide, its maps are large and the learning rate is small for a reason: when rounding
pushes a ReLU over its kink, the gradient changes by the share of one activation. In a network of 4
channels on 8-px images this share is so large that a difference in the last digit grows a
thousandfold within a few steps, on one device as on many.
"""

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent))  # run as a file or as a module

from fct_jax import config as configs
from fct_jax import data, models
from fct_jax.embed.images import embed_images
from fct_jax.frozen.model import load_model, write_model
from fct_jax.runtime import sharding
from fct_jax.train import batch_size as batch
from fct_jax.train.compatible.methods import METHODS
from fct_jax.train.large_classes import with_padded_classes
from fct_jax.train.loop import TASKS
from fct_jax.train.optimizer import build_optimizer
from fct_jax.train.state import fresh_state
from fct_jax.train.steps import compile_steps
from tools.script import Parser, status

TOLERANCE = 1e-4
SMALLEST = 0.1  # scale of arrays whose entries are all smaller: BatchNorm biases start at 0
BATCH = 240  # divisible by 1, 2, 3, 4, 5, 6 and 8 devices; 4 steps make an epoch of the digits
EMBEDDING = "embedding"  # a task besides those that train
SECONDS = 3600  # time limit for one number of devices

for _name in ("resnet18", "resnet18_projection"):
    _module, _fixed = models.MODELS[_name]
    models.MODELS[f"{_name}_block"] = (_module, {**_fixed, "depths": (1,)})


def cases(runs: Path) -> dict:
    """Return the config of every task by name, 20 steps each."""
    old, new = str(runs / "old"), str(runs / "new")
    made = {"backbone": _images(configs.backbone()), "simclr": _simclr()}
    made["accumulated"] = _images(configs.backbone(), accumulate_steps=2)
    for name in ("fct", "fastfill"):
        config = _common(configs.transformation())
        config.model.name, config.model.inner_dim = name, 64
        config.old, config.new, config.views = old, new, 1
        config.optimizer.lr = 3e-5
        made[name] = config
    made["fastfill"].loss.discriminative_weight = 1.0
    made["fct online"] = made["fct"].copy_and_resolve_references()
    made["fct online"].online = True
    for method in METHODS:
        made[method] = _compatible(method, old)
    made["lce transformed"] = _compatible("lce", old)
    made["lce transformed"].compatibility.transformation_blocks = 1
    reid = made["reid"] = _compatible("none", "")
    reid.base_loss, reid.sampler.name, reid.sampler.images = "arcface", "identities", 30
    reid.sampler.rounds, reid.optimizer.lr = 3, 2e-5
    reid.reid.triplet_weight, reid.reid.center_weight = 1.0, 5e-4
    return made


def _common(config):
    config.preprocessing.size = 16
    config.preprocessing.flip = False
    config.batch_size = BATCH
    config.epochs = 5
    config.optimizer.schedule.warmup_epochs = 2
    return config


def _images(config, **changes):
    config = _common(config)
    config.model.name = "resnet18_block"
    config.model.width, config.model.embedding_dim, config.model.small_stem = 16, 16, True
    config.optimizer.lr = 3e-3
    config.update(changes)
    return config


def _simclr():
    config = _images(configs.simclr())
    config.head.hidden_dim, config.head.output_dim = 32, 16
    config.optimizer.lr = 0.01
    return config


def _compatible(method: str, old: str):
    config = _images(configs.compatible())
    config.model.name = "resnet18_projection_block"
    config.method, config.old = method, old if method != "none" else ""
    config.compatibility.temperature = 0.1  # published: 0.01, which also magnifies rounding
    config.optimizer.lr = 5e-5
    config.optimizer.schedule.name = "cosine"
    size = config.model.embedding_dim
    config.model.embedding_dim = METHODS[method].size.of(size, size, size)
    if METHODS[method].teacher:
        config.teacher = str(Path(old).with_name("new"))
    return config


def prepare(runs: Path) -> None:
    """Export an old and a new model with random weights that resemble trained ones."""
    mesh = sharding.make_mesh()
    for seed, (name, classes) in enumerate((("old", "first 5"), ("new", ""))):
        config = _images(configs.backbone())
        config.data.classes = classes
        task = TASKS[config.task](config, mesh)
        variables = jax.jit(task.init)(jax.random.key(seed))
        write_model(runs / name / "model", task.describe(), variables)
    for name in ("fct", "advbct", "lce"):  # the workers share embeddings and statistics
        config = cases(runs)[name]
        TASKS[config.task](config, mesh)


def trained(config, model: int, steps: int) -> tuple[list[float], dict[str, np.ndarray]]:
    """Return the loss of every call of several steps, and the final parameters and statistics."""
    config.mesh.model = model
    mesh = sharding.make_mesh(**config.mesh)
    config = batch.resolved(config, mesh)
    task = with_padded_classes(TASKS[config.task](config, mesh), mesh)
    optimizer = build_optimizer(config.optimizer, config.epochs, task.feed.steps_per_epoch)
    micro = batch.micro_batches(config)
    run = compile_steps(task, optimizer, config.seed, micro, config.remat, mesh=mesh)
    state = fresh_state(task, optimizer, config.seed, mesh)
    losses, step = [], 0
    while step < steps:
        freeze = task.freeze_batch_norm(step // task.feed.steps_per_epoch)
        for count, call in task.feed.calls(step):
            state, sums = run(state, task.feed.data, task.frozen, call, count, freeze=freeze)
            losses.append(float(sums["loss"]) / count)
            step += count
            if step >= steps:
                break
    arrays = jax.tree_util.tree_leaves_with_path(jax.device_get(state.variables))
    names = (jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in arrays)
    return losses, dict(zip(names, (array for _, array in arrays), strict=True))


def work(runs: Path, out: Path, names: list[str], model: int, steps: int) -> None:
    """Train on the devices of this process; write the results to ``out``."""
    jax.config.update("jax_default_matmul_precision", "highest")
    known = cases(runs)
    for name in names:
        if name == EMBEDDING:
            found = embed_images(load_model(runs / "new"), _validation(), out / "set")
            losses, arrays = [], {"vectors": np.asarray(found.vectors)}
        else:
            losses, arrays = trained(known[name], model, steps)
        np.savez(out / f"{name}.npz", losses=losses, **arrays)


def _validation() -> data.Source:
    return data.open_source(_images(configs.backbone()).data, "validation")


def compare(devices: list[str], names: list[str], steps: int, runs: Path) -> dict:
    """Return {(task, devices): (largest relative difference of a loss, of an array, its name)}.

    Args:
      devices: numbers of devices, where "8m2" means eight with two along the mesh axis "model";
        the first is the reference.
      names: names of tasks.
      steps: number of training steps.
      runs: a folder for all files; old and new runs that it already holds are used.

    Raises:
      RuntimeError: if a worker failed.
      subprocess.TimeoutExpired: if a worker took too long.
    """
    if not (runs / "new" / "model").is_dir():
        _call(1, ["prepare", str(runs)])

    def run(which: str) -> dict:
        count, _, model = which.partition("m")
        (runs / which).mkdir()
        arguments = [str(runs), str(runs / which), json.dumps(names), model or "1", str(steps)]
        _call(int(count), ["work", *arguments])
        found = {}
        for name in names:
            with np.load(runs / which / f"{name}.npz") as file:
                found[name] = {key: file[key] for key in file.files}
        return found

    with ThreadPoolExecutor(2) as pool:
        reference, *others = pool.map(run, devices)
    return {
        (name, which): _differences(other[name], reference[name])
        for which, other in zip(devices[1:], others, strict=True)
        for name in names
    }


def _differences(found: dict, expected: dict) -> tuple[float, float, str]:
    worst = {}
    for key, value in expected.items():
        scale = np.abs(value) if key == "losses" else np.abs(value).max(initial=SMALLEST)
        worst[key] = float(np.max(np.abs(found[key] - value) / scale, initial=0))
    losses = worst.pop("losses")
    name = max(worst, key=worst.get)
    return losses, worst[name], name


def _call(devices: int, arguments: list[str]) -> None:
    """Run this file in a process with ``devices`` devices."""
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}
    done = subprocess.run(
        [sys.executable, "-m", "tools.check_devices", *arguments],
        cwd=Path(__file__).parent.parent,
        env=environment,
        timeout=SECONDS,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{devices} devices: {done.stderr[-2000:]}")


def main(words) -> int | None:
    """Run the command; see the file's docstring."""
    if words[:1] == ["prepare"]:
        return prepare(Path(words[1]))
    if words[:1] == ["work"]:
        runs, out, names, model, steps = words[1:]
        return work(Path(runs), Path(out), json.loads(names), int(model), int(steps))
    names = [*cases(Path("runs")), EMBEDDING]
    parser = Parser(__doc__)
    parser.add_argument(
        "--devices", default="1,2,8,8m2", help="numbers, the first is the reference"
    )
    parser.add_argument("--tasks", default="", help=f"of {', '.join(names)}; all by default")
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args(words)
    devices = arguments.devices.split(",")
    names = arguments.tasks.split(",") if arguments.tasks else names
    with tempfile.TemporaryDirectory() as folder:
        found = compare(devices, names, arguments.steps, Path(folder))
    table = Table("task", "devices", "loss", "arrays", "worst array")
    for (name, which), (loss, arrays, worst) in found.items():
        table.add_row(name, which, f"{loss:.1e}", f"{arrays:.1e}", worst)
    Console(width=120).print(table)
    above = sum(max(loss, arrays) > TOLERANCE for loss, arrays, _ in found.values())
    print(f"{len(found) - above} of {len(found)} agree with {devices[0]} to {TOLERANCE:g}")
    return 1 if above else 0


if __name__ == "__main__":
    sys.exit(status(main))
