"""Compile programs, and read the memory, work and time that they need."""

import math
import re
import time
from typing import NamedTuple

from fct_jax.compiling import hlo
from fct_jax.compiling.chips import Chip, find_chip, topology_mesh
from fct_jax.compiling.programs import Program, programs_of
from fct_jax.compiling.stand_ins import USUAL, Given
from fct_jax.compiling.traffic import main_memory_bytes
from fct_jax.errors import UserError

# Both ways in which the compiler says that a program is too large; the second counts temporaries.
_USED = re.compile(
    r"(?:Used |HLO temporaries \()([\d.]+)([KMG])(?: of [\d.]+[KMG] hbm|\) exceeds available HBM)",
    re.IGNORECASE,
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


class Compiled(NamedTuple):
    """A compiled program, with the figures of one chip for one step.

    Attributes:
      name, items, unit, of: see `programs.Program`.
      chips: number of chips that the program runs on.
      memory: peak memory in bytes.
      fits: whether the chip has that much memory.
      flops: number of operations.
      bytes_accessed: bytes read and written as the compiler counts them, which includes the chip's
        fast memory and counts what is fetched into it twice.
      memory_traffic: bytes read from and written to the chip's main memory; see `traffic`.
      collectives: {kind: (count, bytes)} of the data transfers between chips.
      largest_copy: bytes of the largest copy or transpose.
      compute, memory_time, link_time: seconds for operations, memory and links at the chip's
        published peaks.
      text: the compiled program; "" if it does not fit.
      compile_seconds: time that compiling took on this machine.
    """

    name: str
    items: int
    unit: str
    of: int | None
    chips: int
    memory: float
    fits: bool
    flops: float = 0.0
    bytes_accessed: float = 0.0
    memory_traffic: float = 0.0
    collectives: dict[str, tuple[int, int]] = {}  # noqa: RUF012 - never changed
    largest_copy: int = 0
    compute: float = 0.0
    memory_time: float = 0.0
    link_time: float = 0.0
    text: str = ""
    compile_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Return the estimated seconds of a call: the slowest of work, memory and links."""
        return max(self.compute, self.memory_time, self.link_time)

    @property
    def bound(self) -> str:
        """Return which of work, memory and links bounds the estimate."""
        bounds = {"compute": self.compute, "memory": self.memory_time, "links": self.link_time}
        return max(bounds, key=bounds.get)

    @property
    def share_of_peak(self) -> float:
        """Return the share of the chip's peak operations that the estimate reaches."""
        return self.compute / self.seconds if self.seconds else 0.0

    def to_json(self) -> dict:
        """Return the figures in a form that JSON can hold, without the program's text."""
        derived = {
            "seconds": self.seconds,
            "bound": self.bound,
            "share_of_peak": self.share_of_peak,
            "items_per_second": self.items / self.seconds if self.seconds else None,
        }
        return {**self._asdict(), **derived, "text": None}


def compile_config(config, topology: str, given: Given = USUAL, say=lambda line: None):
    """Yield each program of a training config, compiled for a topology.

    Args:
      config: an ml_collections ConfigDict of a training task.
      topology: such as ``v5e:4x4``; see `chips.CHIPS`.
      given: sizes that the config does not contain.
      say: called with a line of text before each program is compiled.

    Raises:
      UserError: the config or the topology is wrong, or there is no TPU compiler.
    """
    mesh = topology_mesh(topology, config.mesh.model)
    yield from compile_programs(
        programs_of(config, mesh, given), find_chip(topology), mesh.size, say
    )


def compile_programs(programs: list[Program], chip: Chip, chips: int, say=lambda line: None):
    """Yield the `Compiled` of each program."""
    for program in programs:
        say(f"compiling {program.name} for {chips} chips")
        start = time.monotonic()
        lowered = program.lower()
        try:
            made = lowered.compile()
        except Exception as error:  # XlaRuntimeError, which is private
            yield _too_large(program, chips, str(error))
            continue
        yield _figures(program, made, chip, chips, time.monotonic() - start)


def _figures(program: Program, made, chip: Chip, chips: int, seconds: float) -> Compiled:
    text, costs, sizes = made.as_text(), made.cost_analysis(), made.memory_analysis()
    memory = (
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        - sizes.alias_size_in_bytes
        + sizes.temp_size_in_bytes
        + sizes.generated_code_size_in_bytes
    )
    traffic = main_memory_bytes(text, program.turns) / program.steps
    moved = {
        kind: (math.ceil(count / program.steps), size // program.steps)
        for kind, (count, size) in hlo.by_kind(hlo.collectives(text, program.turns)).items()
    }
    # The compiler counts the body of a loop once. Nearly all work of a step is in micro-batches.
    flops, accessed = (costs[key] * program.parts for key in ("flops", "bytes accessed"))
    # On a ring each byte of an all-reduce is sent twice, each byte of other collectives once.
    over_links = sum(
        size * (2 if kind == "all-reduce" else 1) * (chips - 1) / chips
        for kind, (_, size) in moved.items()
    )
    return Compiled(
        *program[:1],
        *program[2:5],
        chips,
        memory,
        memory <= chip.memory,
        flops,
        accessed,
        traffic,
        moved,
        max((each.size for each in hlo.copies(text, 0)), default=0),
        flops / chip.flops,
        traffic / chip.memory_bandwidth,
        over_links / chip.link_bandwidth,
        text,
        seconds,
    )


def _too_large(program: Program, chips: int, message: str) -> Compiled:
    """Return the figures of a program that the compiler rejected as too large."""
    used = _USED.search(message)
    if used is None:
        raise UserError(f"{program.name} cannot be compiled: {message.splitlines()[0]}") from None
    memory = float(used[1]) * _UNITS[used[2].upper()]
    return Compiled(program.name, program.items, program.unit, program.of, chips, memory, False)
