"""Measure the known-answer gate: ``python -m tools.measure_gate``, for docs/known-answers.md.

The gate judges right and wrong pairings of real vectors (digits, emoji, text), with maps from
useless to perfect and with 16 to 5,000 items. A *false alarm* refuses a right pairing, a *miss*
accepts a wrong one as fitting. "Cannot tell" is neither: the gate reports it and goes on.

The constants of the gate were chosen on these data. ``--held-out`` measures on other data, which
were not looked at before the constants were fixed, with other draws, and prints one table.
"""

import argparse
import collections
import itertools
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
# Number of pairs of a ridge map; 0: a random, useless map; None: a map without error.
FITTED = (0, 8, 20, 100, 500, None)
KNOWN = 256  # number of a map's test pairs


def digits():
    """Return (old, new) of 1,797 images of digits by two random one-layer networks."""
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


def pictures():
    """Return (old, new) of the 684 pictures of emoji that no model was trained on."""
    return tuple(
        np.load(DATA / "emoji" / f"validation_{v}.npy").astype(np.float64) for v in ("old", "new")
    )


def sentences():
    """Return (old, new) of 4,000 usage examples, which are not entries, by the two encoders."""
    return tuple(
        np.load(DATA / "text" / f"query_{v}.npy").astype(np.float64) for v in ("old", "new")
    )


def tumours():
    """Return (old, new) of 569 tumours with 30 measurements by two random one-layer networks."""
    from sklearn.datasets import load_breast_cancer

    rows = load_breast_cancer().data
    return _two_networks((rows - rows.mean(0)) / rows.std(0), 12, 24, seed=1)


def patches():
    """Return (old, new) of 5,000 patches of two photographs, 8 × 8, by two random networks."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(2)
    rows = []
    for image in load_sample_images().images:
        top, left = (rng.integers(size - 8, size=2500) for size in image.shape[:2])
        rows += [
            image[t : t + 8, x : x + 8].reshape(-1) / 255 for t, x in zip(top, left, strict=True)
        ]
    return _two_networks(np.array(rows) - 0.5, 40, 100, seed=3)


def factors():
    """Return (old, new) of 6,000 made-up items: 20 factors in small and large classes, and noise.

    Each model sees the items through its own layer and adds its own noise.
    """
    rng = np.random.default_rng(4)
    shares = 1 / np.arange(1, 61)
    classes = rng.choice(60, 6000, p=shares / shares.sum())
    rows = rng.standard_normal((60, 20))[classes] + 0.7 * rng.standard_normal((6000, 20))
    old, new = _two_networks(rows, 48, 200, seed=5)
    return tuple(m + 0.5 * m.std() * rng.standard_normal(m.shape) for m in (old, new))


def heavy_tails():
    """Return (old, new) of 6,000 made-up items whose 64 factors have few, large values."""
    rows = np.random.default_rng(6).standard_t(3, (6000, 64)) * np.geomspace(1, 0.05, 64)
    return _two_networks(rows, 300, 32, seed=7)


def _two_networks(rows, old_dim: int, new_dim: int, seed: int):
    """Return the outputs (N, old_dim) and (N, new_dim) of two random layers for rows (N, D)."""
    rng = np.random.default_rng(seed)
    first, second = (rng.standard_normal((rows.shape[1], d)) for d in (old_dim, new_dim))
    size = np.sqrt((rows**2).sum(1).mean())
    return np.maximum(rows @ first / size + 0.3, 0), np.tanh(rows @ second / size)


SETS = {"digits": digits, "emoji": emoji, "text": text}
# Not looked at before the constants were fixed.
HELD_OUT = {
    "emoji, other pictures": pictures,
    "text, usage examples": sentences,
    "tumours": tumours,
    "patches of photographs": patches,
    "factors": factors,
    "heavy tails": heavy_tails,
}
HELD_OUT_SEED = 1000


def fitted_map(old, new, count: int | None, rng):
    """Return a ridge map fitted on ``count`` pairs, or a random map if there are none."""
    if not count:
        weight = rng.standard_normal((old.shape[1], new.shape[1]))
        return lambda x: x @ weight
    x, y = old[:count] - old[:count].mean(0), new[:count] - new[:count].mean(0)
    gram = x @ x.T
    dual = np.linalg.solve(gram + 0.3 * np.trace(gram) / count * np.eye(count), y)
    return lambda z: (z - old[:count].mean(0)) @ (x.T @ dual) + new[:count].mean(0)


def wrong_pairings(old, new, rng) -> dict:
    """Return wrong vectors to put in place of the new ones, by the name of the mistake."""
    half = rng.permutation(len(new))[:, None] % 2 == 0
    turn = np.linalg.qr(rng.standard_normal((new.shape[1],) * 2))[0]
    return {
        "shuffled": rng.permutation(new),
        "shifted": np.roll(new, 1, axis=0),
        "half shuffled": np.where(half, new[rng.permutation(len(new))], new),
        "other model": (new - new.mean(0)) @ turn + new.mean(0),
    }


def measure_map(old, new, count, items, repeats, with_known=True, seed=0):
    """Return counts of (truth, outcome) over draws; truth is "right" or the name of the mistake."""
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
    """Return such counts for the check before a map is fitted; ``noise`` degrades the old model."""
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


def measure_set(old, new, repeats: int, seed: int, items):
    """Yield (title, {row: counts for each number of items}) for each table of a set."""
    for with_known in (True, False):
        yield (
            f"a map with {'256' if with_known else 'no'} tested pairs",
            {
                name_of(count): [
                    measure_map(old, new, count, m, repeats_of(repeats, m), with_known, seed)
                    for m in items
                ]
                for count in FITTED
            },
        )
    yield (
        "pairs before a map is fitted",
        {
            f"noise {noise:g}": [
                measure_pairs(old, new, m, repeats_of(repeats, m), noise, seed) for m in items
            ]
            for noise in (0.0, 1.0, 2.0, 4.0)
        },
    )


def outcomes(totals, *truths: str) -> list[str]:
    """Return the shares of "fits", "cannot tell" and "wrong", and the number of outcomes."""
    asked = sum(n for (truth, _), n in totals.items() if truth in truths)
    if not asked:
        return ["–"] * 4
    counts = [sum(totals[truth, o] for truth in truths) for o in (FITS, CANNOT_TELL, WRONG)]
    return [*(f"{100 * count / asked:.1f} %" for count in counts), f"{asked:,}"]


def held_out(repeats: int, names, items) -> None:
    """Print a row per set and question: right pairings, wrong ones, and half-wrong ones."""
    heading = ["", "right: refused / cannot tell", "wrong: passed / cannot tell"]
    heading += ["half of them wrong: passed / cannot tell", "asked"]
    print(f"| {' | '.join(heading)} |\n|{'---|' * len(heading)}")
    totals = collections.Counter()
    for name in names:
        for which, rows in measure_set(*HELD_OUT[name](), repeats, HELD_OUT_SEED, items):
            found = sum(filter(None, itertools.chain(*rows.values())), collections.Counter())
            totals += found
            right = outcomes(found, "right")
            wrong = outcomes(found, "shuffled", "shifted", "other model")
            half = outcomes(found, "half shuffled")
            cells = [f"{name}, {which}", f"{right[2]} / {right[1]}", f"{wrong[0]} / {wrong[1]}"]
            cells += [f"{half[0]} / {half[1]}", str(sum(found.values()))]
            print(f"| {' | '.join(cells)} |", flush=True)
    summary(totals)


def summary(totals) -> None:
    """Print the outcomes of all draws."""
    print("\n**All of these**\n\n| | fits | cannot tell | refused | asked |\n|---|---|---|---|---|")
    for truth in ("right", "shuffled", "shifted", "half shuffled", "other model"):
        print(f"| {truth} | {' | '.join(outcomes(totals, truth))} |")


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--sets", nargs="*", default=[], help="names of data; none: all")
    parser.add_argument("--items", nargs="*", type=int, default=list(COUNTS))
    parser.add_argument("--held-out", action="store_true", help="data that chose no constant")
    options = parser.parse_args(argv)
    if options.held_out:
        held_out(options.repeats, options.sets or HELD_OUT, options.items)
        return
    totals = collections.Counter()
    for name in options.sets or SETS:
        for which, rows in measure_set(*SETS[name](), options.repeats, 0, options.items):
            totals += sum(filter(None, itertools.chain(*rows.values())), collections.Counter())
            cells = {row: [cell(part) for part in found] for row, found in rows.items()}
            unit = "pairs" if which.startswith("pairs") else "items"
            table(f"**{name}, {which}**, by {unit}", cells, options.items)
    summary(totals)


def repeats_of(repeats: int, items: int) -> int:
    """Return fewer repeats for large numbers of items, which take long and vary little."""
    return max(2, repeats // 5) if items >= 1000 else repeats


if __name__ == "__main__":
    main()
