"""Measures backbones on this machine: training step and forward pass, against plain PyTorch.

    python tools/benchmark.py --only backbone

Ratios compare times of one run, measured in turns, so that a busy machine disturbs both sides
alike. In the rows "XLA's convolutions", XLA's own convolutions replace everywhere those that
`fct_jax.models.convolution` chooses.
"""

import os
import time
from collections.abc import Callable
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from fct_jax.models import build, convolution
from tools.speed.common import figure

CLASSES, DIM = 100, 128

# (model, pixels, batch, whether XLA's own convolutions are timed, too)
QUICK = [("resnet50", 64, 8, True), ("resnet18", 64, 8, False)]
FULL = [
    ("resnet50", 64, 32, True),
    ("resnet50", 224, 8, True),
    ("resnet18", 64, 64, True),
    ("resnet18", 224, 16, True),
]


def run(quick: bool) -> list[dict]:
    """Return all figures; see ``tools.speed.common.figure``.

    Seconds are the best time of several steps or forward passes. Memory is the size of the compiled
    program's arguments, results and temporaries.
    """
    rows = []
    # When other programs take the cores, PyTorch's threads wait for each other much longer than
    # XLA's do. Such ratios flatter our side; the note says so.
    cores = len(os.sched_getaffinity(0))
    load = f"load average {os.getloadavg()[0]:.1f} on {cores} cores"
    for name, pixels, batch, with_before in QUICK if quick else FULL:
        torch_jobs = _torch_jobs(name, pixels, batch)
        jobs = _jax_jobs(name, pixels, batch)
        before = {}
        if with_before:
            with mock.patch.object(convolution, "convolve", convolution.plain):
                before = _jax_jobs(name, pixels, batch)
        for job, (ours, peak_mb) in jobs.items():
            candidates = {"ours": ours}
            if torch_jobs:
                candidates["torch"] = torch_jobs[job]
            if before:
                candidates["before"] = before[job][0]
            seconds = _best_in_turns(candidates, rounds=3 if quick else 5)
            title = f"{name} {job}, {pixels} px, batch {batch}"
            rate = f"{batch / seconds['ours']:.0f} images/s, {load}"
            missing = "" if torch_jobs else "; PyTorch is not installed, so there is no baseline"
            ours_s = seconds["ours"]
            rows.append(
                figure(f"{title}, PyTorch", ours_s, seconds.get("torch"), peak_mb, rate + missing)
            )
            if before:
                name_before = f"{title}, XLA's convolutions"
                rows.append(figure(name_before, ours_s, seconds["before"], peak_mb, ""))
    return rows


def _best_in_turns(candidates: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Return the shortest of ``rounds`` runs of each candidate, after a warm-up run."""
    times = {name: [] for name in candidates}
    for _ in range(rounds + 1):
        for name, call in candidates.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: min(values[1:]) for name, values in times.items()}


def _jax_jobs(name: str, pixels: int, batch: int) -> dict[str, tuple[Callable[[], None], float]]:
    """Return forward pass and SGD step as blocking calls, each with its memory in MB."""
    model = build(name, num_classes=CLASSES, embedding_dim=DIM)
    random = np.random.default_rng(0)
    images = jnp.asarray(random.normal(size=(batch, pixels, pixels, 3)), jnp.float32)
    labels = jnp.arange(batch) % CLASSES
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])

    def loss(params, stats):
        (logits, _), new = model.apply(
            {"params": params, "batch_stats": stats}, images, train=True, mutable=["batch_stats"]
        )
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
        return -picked.mean(), new["batch_stats"]

    def step(params, stats, momentum):
        (_, stats), gradients = jax.value_and_grad(loss, has_aux=True)(params, stats)
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, gradients)
        return jax.tree.map(lambda p, m: p - 0.01 * m, params, momentum), stats, momentum

    params, stats = variables["params"], variables["batch_stats"]
    momentum = jax.tree.map(jnp.zeros_like, params)
    forward = jax.jit(model.apply).lower(variables, images).compile()
    train = jax.jit(step).lower(params, stats, momentum).compile()
    return {
        "forward": (lambda: jax.block_until_ready(forward(variables, images)), _peak_mb(forward)),
        "step": (
            lambda: jax.block_until_ready(train(params, stats, momentum)),
            _peak_mb(train),
        ),
    }


def _peak_mb(compiled) -> float:
    memory = compiled.memory_analysis()
    total = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )
    return total / 1e6


def _torch_jobs(name: str, pixels: int, batch: int) -> dict[str, Callable[[], None]] | None:
    """Return the same two calls in PyTorch, on as many threads, or None without PyTorch."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = _torch_model(name)
    images = torch.randn(batch, 3, pixels, pixels)
    labels = torch.arange(batch) % CLASSES
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def forward():
        model.eval()
        with torch.inference_mode():
            model(images)

    def step():
        model.train()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return {"forward": forward, "step": step}


def _torch_model(name: str):
    """Return a plainly written residual network of the same shape."""
    from torch import nn

    depths, expansion = {"resnet18": ((2, 2, 2, 2), 1), "resnet50": ((3, 4, 6, 3), 4)}[name]

    def conv_bn(inputs, outputs, size, stride=1):
        conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs))

    class Block(nn.Module):
        def __init__(self, inputs, planes, outputs, stride):
            super().__init__()
            if expansion == 1:
                plan = [(inputs, outputs, 3, stride), (outputs, outputs, 3, 1)]
            else:
                plan = [(inputs, planes, 1, 1), (planes, planes, 3, stride), (planes, outputs, 1)]
            layers = [conv_bn(*plan[0])]
            for sizes in plan[1:]:
                layers += [nn.ReLU(inplace=True), conv_bn(*sizes)]
            self.main = nn.Sequential(*layers)
            same = stride == 1 and inputs == outputs
            self.shortcut = nn.Identity() if same else conv_bn(inputs, outputs, 1, stride)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x):
            return self.relu(self.main(x) + self.shortcut(x))

    layers = [conv_bn(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, depth in enumerate(depths):
        for index in range(depth):
            planes = 64 * 2**stage
            outputs = DIM if (stage, index) == (3, depth - 1) else planes * expansion
            stride = 2 if stage > 0 and index == 0 else 1
            layers.append(Block(channels, planes, outputs, stride))
            channels = outputs
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(DIM, CLASSES, bias=False)]
    return nn.Sequential(*layers, *head)
