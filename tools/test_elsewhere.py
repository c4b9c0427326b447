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
    """Environment variables, the processor flag that they need, and whether `.ci/run` tries them.

    With ``quick``, it does so on the files whose numbers come from that library.
    """

    variables: dict[str, str]
    needs: str = ""
    quick: str = ""


XLA, NUMPY = "XLA", "NumPy or Numba"


def _isa(name: str, needs: str, quick: str = "") -> Setting:
    return Setting({"XLA_FLAGS": f"--xla_cpu_max_isa={name}"}, needs, quick)


def _blas(name: str, needs: str, quick: str = "") -> Setting:
    return Setting({"OPENBLAS_CORETYPE": name}, needs, quick)


def _threads(count: int) -> Setting:
    names = ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    return Setting(dict.fromkeys(names, str(count)))  # XLA reads NPROC


SETTINGS = {
    "isa-sse4_2": _isa("SSE4_2", "sse4_2", XLA),
    "isa-avx2": _isa("AVX2", "avx2"),
    "isa-avx512": _isa("AVX512", "avx512f"),
    "blas-haswell": _blas("Haswell", "avx2", NUMPY),
    "blas-skylakex": _blas("SkylakeX", "avx512f"),
    "blas-zen": _blas("Zen", "avx2"),
    "numba-generic": Setting({"NUMBA_CPU_NAME": "generic"}, quick=NUMPY),
    "threads-1": _threads(1),
    "threads-2": _threads(2),
    "threads-4": _threads(4),
}

# test files with numerical results -> the library whose settings `.ci/run` repeats them with
FILES = {
    "test_optimizer_golden.py": "",
    "test_optimizer.py": XLA,
    "test_batch_norm.py": XLA,
    "test_transformation_model.py": XLA,
    "test_losses_golden_fct.py": XLA,
    "test_losses_golden_advbct.py": XLA,
    "test_metrics.py": NUMPY,
    "test_class_statistics.py": XLA,
    "test_resnet.py": "",
    "test_convolution.py": "",
    "test_losses_oracles.py": "",
    "test_losses_adversarial.py": "",
    "test_losses_reid.py": "",
    "test_lce_transformation.py": "",
    "test_discriminator.py": "",
    "test_projection.py": "",
    "test_simclr.py": "",
    "test_reid.py": "",
    "test_backfill.py": "",
    "test_maps.py": "",
    "test_guards.py": "",
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
    results = {}
    for name in names:
        files = options.files or files_of(SETTINGS[name], quick)
        results[name] = run(name, [find(file) for file in files])
        print(f"{name}: {results[name]}", flush=True)
    return int(any(result.startswith("FAILED") for result in results.values()))


def files_of(setting: Setting, quick: bool) -> list[str]:
    """Return the files to repeat: all, or with ``quick`` those of the setting's library."""
    if not quick:
        return list(FILES)
    wanted = {setting.quick} if setting.quick else {XLA, NUMPY}
    return [name for name, library in FILES.items() if library in wanted]


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
