"""Measure the known-answer gate: ``python -m tools.measure_gate``, for docs/known-answers.md.

Right and wrong pairings of real vectors (digits, emoji, text) are put to the gate, by maps from
useless to perfect and by 16 to 5,000 items. A *false alarm* refuses a right pairing, a *miss* lets
a wrong one pass as fitting. "Cannot tell" is neither: the gate says so and goes on.
"""

import argparse
import collections
from pathlib import Path

import numpy as np

from fct_jax.upgrade.checks.known_answers import (
    CANNOT_TELL,
    FITS,
    WRONG,
    Expected,
    ask,
    ask_pairing,
)

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
SAMPLE = Path(__file__).parent.parent / "tests" / "text_sample.npz"
COUNTS = (16, 32, 64, 128, 256, 1000, 5000)
# A ridge map is fitted on so many pairs; 0: a random, useless map; None: a map without error.
FITTED = (0, 8, 20, 100, 500, None)
KNOWN = 256  # tested pairs of a map


def digits():
    """Return (old, new) of 1,797 images of digits by two random networks of one layer."""
    from sklearn.datasets import load_digits

    images = load_digits().data / 16
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((64, 16)) / 8, rng.standard_normal((64, 32)) / 8
    return np.maximum((images - images.mean(0)) @ first, 0), np.tanh(2 * images @ second)


def emoji():
    """Return (old, new) of 5,156 pictures of emoji, some mirrored, by two ResNet-18."""
    parts = [
        [np.load(DATA / "emoji" / f"{k}_{v}.npy") for k in ("train", "train_flipped")]
        for v in ("old", "new")
    ]
    return tuple(np.concatenate(part).astype(np.float64) for part in parts)


def text():
    """Return (old, new) of 20,000 dictionary entries by two public encoders."""
    return tuple(np.load(DATA / "text" / f"{v}.npy").astype(np.float64) for v in ("old", "new"))


def text_sample():
    """Return (old, new) of the 500 entries that the repository holds."""
    with np.load(SAMPLE) as file:
        return file["old"].astype(np.float64), file["new"].astype(np.float64)


SETS = {"digits": digits, "emoji": emoji, "text": text}


def fitted_map(old, new, count: int | None, rng):
    """Return a ridge map of so many pairs; 0: a random one."""
    if not count:
        weight = rng.standard_normal((old.shape[1], new.shape[1]))
        return lambda x: x @ weight
    x, y = old[:count] - old[:count].mean(0), new[:count] - new[:count].mean(0)
    gram = x @ x.T
    dual = np.linalg.solve(gram + 0.3 * np.trace(gram) / count * np.eye(count), y)
    return lambda z: (z - old[:count].mean(0)) @ (x.T @ dual) + new[:count].mean(0)


def wrong_pairings(old, new, rng) -> dict:
    """Return, by name, vectors in the place of the right new ones."""
    half = rng.permutation(len(new))[:, None] % 2 == 0
    turn = np.linalg.qr(rng.standard_normal((new.shape[1],) * 2))[0]
    return {
        "shuffled": rng.permutation(new),
        "shifted": np.roll(new, 1, axis=0),
        "half shuffled": np.where(half, new[rng.permutation(len(new))], new),
        "other model": (new - new.mean(0)) @ turn + new.mean(0),
    }


def measure_map(old, new, count, items, repeats, with_known=True, seed=0):
    """Return counts of (truth, outcome) over draws of a map and items: "right" or what is wrong."""
    found = collections.Counter()
    for repeat in range(repeats):
        rng = np.random.default_rng((seed, repeat, items))
        order = rng.permutation(len(old))
        old_all, new_all = old[order], new[order]
        perfect = count is None
        fitted = fitted_map(old_all, new_all, 0 if perfect else count, rng)
        first = count or 0
        tested = slice(first, first + KNOWN)
        rest = slice(first + KNOWN, first + KNOWN + items)
        if len(old_all) < rest.stop:
            return None
        x, y = old_all[rest], new_all[rest]
        translated = y if perfect else fitted(x)
        expected = None
        if with_known:
            known = old_all[tested], new_all[tested]
            mapped = known[1] if perfect else fitted(known[0])
            expected = Expected.of(mapped, *known, "l2", items)
        found["right", ask(x, translated, y, "l2", expected).outcome] += 1
        for name, wrong in wrong_pairings(x, y, rng).items():
            found[name, ask(x, translated, wrong, "l2", expected).outcome] += 1
    return found


def measure_pairs(old, new, items, repeats, noise=0.0, seed=0):
    """Return the same for the check before a map is fitted; ``noise`` spoils the old model."""
    found = collections.Counter()
    if len(old) < items:
        return None
    for repeat in range(repeats):
        rng = np.random.default_rng((seed, repeat, items))
        rows = rng.permutation(len(old))[: min(items, 1000)]
        x, y = old[rows], new[rows]
        x = x + noise * x.std(0).mean() * rng.standard_normal(x.shape)
        found["right", ask_pairing(x, y).outcome] += 1
        found["shuffled", ask_pairing(x, rng.permutation(y)).outcome] += 1
        found["shifted", ask_pairing(x, np.roll(y, 1, axis=0)).outcome] += 1
    return found


def cell(found) -> str:
    """Return false alarms / cannot tell (right pairings) · misses / cannot tell (wrong), in %."""
    if found is None:
        return "–"
    share = collections.defaultdict(float)
    for truth in ("right", "wrong"):
        mine = {k: n for k, n in found.items() if (k[0] == "right") == (truth == "right")}
        for (_, outcome), number in mine.items():
            share[truth, outcome] += 100 * number / sum(mine.values())
    parts = [("right", WRONG), ("right", CANNOT_TELL), ("wrong", FITS), ("wrong", CANNOT_TELL)]
    return "{:.0f} / {:.0f} · {:.0f} / {:.0f}".format(*(share[part] for part in parts))


def table(title: str, rows: dict, counts) -> None:
    print(f"\n{title}\n\n| | {' | '.join(f'{c:,}' for c in counts)} |")
    print(f"|---|{'---|' * len(counts)}")
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def name_of(count: int | None) -> str:
    if count is None:
        return "perfect"
    return f"ridge of {count:,} pairs" if count else "useless"


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--sets", nargs="*", default=list(SETS))
    options = parser.parse_args(argv)
    totals = collections.Counter()
    for name in options.sets:
        old, new = SETS[name]()
        for with_known in (True, False):
            rows = {}
            for count in FITTED:
                found = [
                    measure_map(old, new, count, m, repeats_of(options.repeats, m), with_known)
                    for m in COUNTS
                ]
                for part in filter(None, found):
                    totals.update(part)
                rows[name_of(count)] = [cell(part) for part in found]
            which = "256 tested pairs" if with_known else "no tested pairs"
            table(f"**{name}, a map with {which}**, by items", rows, COUNTS)
        rows = {}
        for noise in (0.0, 1.0, 2.0, 4.0):
            found = [
                measure_pairs(old, new, m, repeats_of(options.repeats, m), noise) for m in COUNTS
            ]
            for part in filter(None, found):
                totals.update(part)
            rows[f"noise {noise:g}"] = [cell(part) for part in found]
        table(f"**{name}, pairs before a map is fitted**, by pairs", rows, COUNTS)
    rows = {}
    for truth in ("right", "shuffled", "shifted", "half shuffled", "other model"):
        sum_of = sum(n for (t, _), n in totals.items() if t == truth)
        outcomes = (FITS, CANNOT_TELL, WRONG)
        rows[truth] = [f"{100 * totals[truth, o] / max(sum_of, 1):.1f} %" for o in outcomes]
        rows[truth].append(f"{sum_of:,}")
    print("\n**All of these**\n\n| | fits | cannot tell | refused | asked |\n|---|---|---|---|---|")
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |")


def repeats_of(repeats: int, items: int) -> int:
    """Return fewer repeats for large numbers of items, which take long and vary little."""
    return max(2, repeats // 5) if items >= 1000 else repeats


if __name__ == "__main__":
    main()
