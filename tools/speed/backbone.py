"""Measures backbones on this machine: training step and forward pass, against plain PyTorch.

    python tools/benchmark.py --only backbone

Ratios compare times of one run, measured in turns, so that a busy machine disturbs both sides
alike. In the rows "XLA's convolutions", XLA's own convolutions replace everywhere those that
`fct_jax.models.convolution` chooses. Where there is a GPU or a TPU, both sides compute in bfloat16
there, PyTorch also as `torch.compile` makes it, and the share of the device's peak is reported.
"""

import os
import time
from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from fct_jax.models import build, convolution
from tools.speed.accelerators import accelerator
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
ON_ACCELERATOR = [("resnet50", 224, 256, False), ("resnet18", 224, 512, False)]


def run(quick: bool) -> list[dict]:
    """Return all figures; see ``tools.speed.common.figure``.

    Seconds are the best time of several steps or forward passes. Memory is the size of the compiled
    program's arguments, results and temporaries.
    """
    rows = []
    device = accelerator()
    # When other programs take the cores, PyTorch's threads wait for each other much longer than
    # XLA's do. Such ratios flatter our side; the note says so.
    cores = len(os.sched_getaffinity(0))
    load = f"load average {os.getloadavg()[0]:.1f} on {cores} cores"
    cases = ON_ACCELERATOR if device else QUICK if quick else FULL
    for name, pixels, batch, with_before in cases:
        baselines = _torch_jobs(name, pixels, batch, device is not None)
        jobs = _jax_jobs(name, pixels, batch, jnp.bfloat16 if device else jnp.float32)
        if with_before:
            with mock.patch.object(convolution, "convolve", convolution.plain):
                before = _jax_jobs(name, pixels, batch)
            baselines["XLA's convolutions"] = {job: before[job].run for job in jobs}
        for job, ours in jobs.items():
            candidates = {side: calls[job] for side, calls in baselines.items()}
            seconds = _best_in_turns({"ours": ours.run, **candidates}, rounds=3 if quick else 5)
            ours_s = seconds["ours"]
            said = [f"{batch / ours_s:.0f} images/s"]
            said.append(device.share(ours.operations, ours_s) if device else load)
            if not any(side.startswith("PyTorch") for side in baselines):
                said.append("no PyTorch for this device, so no baseline")
            for side in candidates or {"": None}:
                title = f"{name} {job}, {pixels} px, batch {batch}{side and ', '}{side}"
                rows.append(figure(title, ours_s, seconds.get(side), ours.peak_mb, ", ".join(said)))
    return rows


class Job(NamedTuple):
    """A blocking call, its memory in MB, and its operations."""

    run: Callable[[], None]
    peak_mb: float
    operations: float


def _best_in_turns(candidates: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Return the shortest of ``rounds`` runs of each candidate, after a warm-up run."""
    times = {name: [] for name in candidates}
    for _ in range(rounds + 1):
        for name, call in candidates.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: min(values[1:]) for name, values in times.items()}


def _jax_jobs(name: str, pixels: int, batch: int, dtype=jnp.float32) -> dict[str, Job]:
    """Return forward pass and SGD step."""
    model = build(name, num_classes=CLASSES, embedding_dim=DIM, dtype=dtype)
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

    def job(function, *arguments) -> Job:
        lowered = jax.jit(function).lower(*arguments)
        # Counted before compilation: a GPU's convolutions become calls that XLA cannot count.
        operations = lowered.cost_analysis()["flops"]
        compiled = lowered.compile()
        return Job(
            lambda: jax.block_until_ready(compiled(*arguments)), _peak_mb(compiled), operations
        )

    return {
        "forward": job(model.apply, variables, images),
        "step": job(step, params, stats, momentum),
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


def _torch_jobs(name: str, pixels: int, batch: int, on_gpu: bool = False) -> dict[str, dict]:
    """Return {side: the same two calls in PyTorch}; empty without PyTorch for the device.

    On a GPU they compute in bfloat16 and in channels-last form, as PyTorch's own advice has it.
    """
    try:
        import torch
    except ImportError:
        return {}
    if on_gpu and not torch.cuda.is_available():
        return {}
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    device = "cuda" if on_gpu else "cpu"
    images = torch.randn(batch, 3, pixels, pixels, device=device)
    labels = torch.arange(batch, device=device) % CLASSES
    model = _torch_model(name).to(device)
    if on_gpu:
        images = images.to(memory_format=torch.channels_last)
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def jobs(call) -> dict[str, Callable[[], None]]:
        def half():
            return torch.autocast(device, torch.bfloat16, enabled=on_gpu)

        def wait():
            if on_gpu:
                torch.cuda.synchronize()

        def forward():
            model.eval()
            with torch.inference_mode(), half():
                call(images)
            wait()

        def step():
            model.train()
            optimizer.zero_grad()
            with half():
                loss = torch.nn.functional.cross_entropy(call(images), labels)
            loss.backward()
            optimizer.step()
            wait()

        return {"forward": forward, "step": step}

    sides = {"PyTorch": jobs(model)}
    if on_gpu:
        sides["PyTorch, compiled"] = jobs(torch.compile(model))
    return sides


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
