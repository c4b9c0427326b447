"""Runs the numerical tests as other processors would: ``python -m tools.test_elsewhere``.

Other instruction sets, linear-algebra kernels and numbers of threads add in other orders, so that
results differ by rounding. Each setting runs the same test files in its own process; a setting that
this processor cannot run is skipped and reported as such.
"""

import argparse
import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
_LIMIT = 7200  # seconds for one setting, on a busy machine


@dataclasses.dataclass(frozen=True)
class Setting:
    """Environment variables, and the processor flag that they need."""

    variables: dict[str, str]
    needs: str = ""
    quick: bool = False


def _isa(name: str, needs: str, quick: bool = False) -> Setting:
    return Setting({"XLA_FLAGS": f"--xla_cpu_max_isa={name}"}, needs, quick)


def _blas(name: str, needs: str, quick: bool = False) -> Setting:
    return Setting({"OPENBLAS_CORETYPE": name}, needs, quick)


def _threads(count: int) -> Setting:
    names = ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    return Setting(dict.fromkeys(names, str(count)))  # XLA reads NPROC


SETTINGS = {
    "isa-sse4_2": _isa("SSE4_2", "sse4_2", quick=True),
    "isa-avx2": _isa("AVX2", "avx2"),
    "isa-avx512": _isa("AVX512", "avx512f"),
    "blas-haswell": _blas("Haswell", "avx2", quick=True),
    "blas-skylakex": _blas("SkylakeX", "avx512f"),
    "blas-zen": _blas("Zen", "avx2"),
    "numba-generic": Setting({"NUMBA_CPU_NAME": "generic"}, quick=True),
    "threads-1": _threads(1),
    "threads-2": _threads(2),
    "threads-4": _threads(4),
}

# test files with numerical results -> whether `.ci/run` repeats them too
FILES = {
    "test_optimizer_golden.py": False,
    "test_optimizer.py": True,
    "test_batch_norm.py": True,
    "test_transformation_model.py": True,
    "test_losses_golden_fct.py": True,
    "test_losses_golden_advbct.py": True,
    "test_metrics.py": True,
    "test_class_statistics.py": True,
    "test_resnet.py": False,
    "test_convolution.py": False,
    "test_losses_oracles.py": False,
    "test_losses_adversarial.py": False,
    "test_losses_reid.py": False,
    "test_lce_transformation.py": False,
    "test_discriminator.py": False,
    "test_projection.py": False,
    "test_simclr.py": False,
    "test_reid.py": False,
    "test_backfill.py": False,
    "test_maps.py": False,
    "test_guards.py": False,
}


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = ", ".join(SETTINGS)
    parser.add_argument("settings", nargs="*", help=f"settings to try (default: all): {known}")
    parser.add_argument("--quick", action="store_true", help="few settings and files, for CI")
    parser.add_argument("--files", nargs="*", default=[], help="names of test files (default: all)")
    options = parser.parse_args(argv)
    if wrong := set(options.settings) - set(SETTINGS):
        parser.error(f"unknown setting {sorted(wrong)[0]}; known: {known}")
    quick = options.quick
    names = options.settings or [n for n, s in SETTINGS.items() if s.quick or not quick]
    files = options.files or [name for name, repeated in FILES.items() if repeated or not quick]
    paths = [find(name) for name in files]
    results = {}
    for name in names:
        results[name] = run(name, paths)
        print(f"{name}: {results[name]}", flush=True)
    return int(any(result.startswith("FAILED") for result in results.values()))


def find(name: str) -> str:
    """Return the path of a test file, whichever folder of the tests it is in."""
    found = list((ROOT / "tests").rglob(name))
    if len(found) != 1:
        raise SystemExit(f"{len(found)} files named {name} in {ROOT / 'tests'}")
    return str(found[0])


def run(name: str, paths: list[str]) -> str:
    """Run the files under one setting and return the result in words."""
    setting = SETTINGS[name]
    if setting.needs and setting.needs not in processor_flags():
        return f"left out: this processor has no {setting.needs}"
    begin = time.monotonic()
    workers = ["-n2", "--dist=loadfile"] if len(paths) > 1 else ["-n0"]
    command = [sys.executable, "-m", "pytest", "-q", *workers, *paths]
    environment = {**os.environ, **setting.variables}
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, timeout=_LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return f"FAILED: not done after {_LIMIT} s"
    word = "FAILED" if done.returncode else "passed"
    return f"{word} in {time.monotonic() - begin:.0f} s"


def processor_flags() -> set[str]:
    """Return the flags that Linux lists, or none elsewhere, which skips settings that need any."""
    listed = Path("/proc/cpuinfo")
    if not listed.is_file():
        return set()
    lines = listed.read_text().splitlines()
    return {flag for line in lines if line.startswith("flags") for flag in line.split()}


if __name__ == "__main__":
    sys.exit(main())
