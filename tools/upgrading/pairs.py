"""Pairs of models to benchmark, and how a seed cuts a pair into sample, gallery and queries."""

import dataclasses
from pathlib import Path

import numpy as np

from fct_jax import demo
from fct_jax.errors import UserError
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.upgrade.inputs import FEWEST, load_array, open_sample, paired, take
from fct_jax.upgrade.ways.judgements import judged_of, rows_of_ids

# role in the folder of a pair -> names that people use for it
FILES = {
    "old": ("old", "gallery_old", "test_old", "validation_old"),
    "new": ("new", "gallery_new", "test_new", "validation_new"),
    "labels": ("labels", "gallery_labels", "test_labels", "validation_labels"),
    "sample_old": ("sample_old", "train_old"),
    "sample_new": ("sample_new", "train_new"),
    "query_old": ("query_old", "queries_old"),
    "query_new": ("query_new", "queries_new"),
    "query_labels": ("query_labels", "queries_labels"),
    "judged": ("judged", "qrels", "query_relevant"),
}
_ENDINGS = ("", ".npy", ".txt", ".tsv")
_SAMPLE_SHARE = 0.4  # of the items, if no sample is given
_QUERY_SHARE = 0.5  # of the remaining items, if no queries are given


@dataclasses.dataclass(frozen=True)
class ModelPair:
    """The same items embedded by two models.

    Attributes:
      name: the name in tables.
      old, new: the gallery by each model.
      sample: more items by both models, to learn from; None: a part of the gallery is set aside.
      queries: queries by both models; None: a part of the gallery serves as queries, which labels
        judge.
      judged: judged pairs as ``assess`` takes them, or None if labels judge.
    """

    name: str
    old: EmbeddingSet
    new: EmbeddingSet
    sample: tuple[EmbeddingSet, EmbeddingSet] | None = None
    queries: tuple[EmbeddingSet, EmbeddingSet] | None = None
    judged: np.ndarray | None = None

    def reversed(self) -> "ModelPair":
        """Return the pair with its models swapped: an upgrade that should be refused.

        It should be refused if the new model is better, which the benchmark's table shows.
        """
        swapped = {
            part: None if getattr(self, part) is None else getattr(self, part)[::-1]
            for part in ("sample", "queries")
        }
        return dataclasses.replace(
            self, name=f"{self.name}, reversed", old=self.new, new=self.old, **swapped
        )


@dataclasses.dataclass(frozen=True)
class Cut:
    """A pair, cut by one seed.

    Attributes:
      sample: the items to fit maps on, in random order, by both models.
      gallery: the gallery by both models; none of it is in the sample.
      queries: two halves, each by both models: one decides, the fresh one tests the decision.
      judged: the judged pairs, as in `ModelPair`.
    """

    sample: tuple[EmbeddingSet, EmbeddingSet]
    gallery: tuple[EmbeddingSet, EmbeddingSet]
    queries: tuple[tuple[EmbeddingSet, EmbeddingSet], ...]
    judged: np.ndarray | None


def digits() -> ModelPair:
    """Return the digits of ``fct_jax.demo``."""
    train, test = demo.load("train"), demo.load("validation")
    sample, gallery = (
        [EmbeddingSet.of(vectors, labels=part.labels) for vectors in (part.old, part.new)]
        for part in (train, test)
    )
    return ModelPair("digits", *gallery, sample=tuple(sample))


def from_folder(name: str, folder) -> ModelPair:
    """Return the pair in a folder: EmbeddingSets or ``.npy`` files with the names in `FILES`.

    Raises UserError if old or new is missing, or if nothing tells which items are relevant.
    """
    folder = Path(folder).expanduser()
    found = {role: _find(folder, names) for role, names in FILES.items()}
    for role in ("old", "new"):
        if found[role] is None:
            raise UserError(f"{folder} holds no pair: there is no {' or '.join(FILES[role])}")
    labels = load_array(found["labels"], "labels")
    old, new = paired(*(open_sample(found[role], role) for role in ("old", "new")))
    if labels is not None:
        old, new = (dataclasses.replace(part, labels=labels) for part in (old, new))
    queries = _both(found, "query", load_array(found["query_labels"], "query_labels"))
    judged = judged_of(found["judged"])
    made = ModelPair(name, old, new, _both(found, "sample", None), queries, judged)
    if judged is not None and queries is None:
        raise UserError(f"{folder}: judged pairs need query_old and query_new")
    if judged is None and _labels_of((old, new)) is None:
        raise UserError(
            f"{folder}: nothing says what is relevant; give labels, or {_one_of('judged')} with "
            "query_old and query_new"
        )
    if judged is None and queries is not None and _labels_of(queries) is None:
        raise UserError(f"{folder}: the queries have no labels; give {_one_of('query_labels')}")
    return made


def from_images(name: str, old, new, images) -> ModelPair:
    """Return the pair of two runs that embed a folder of images or a named data set.

    The training split is the sample, the validation split the gallery.
    """
    from fct_jax import config as configs

    data = configs.data()
    data.name = "folder" if Path(images).expanduser().is_dir() else str(images)
    data.dir = str(Path(images).expanduser()) if data.name == "folder" else ""
    sample, gallery = (
        paired(*(open_sample(where, role, data=data, split=split)
                 for role, where in (("old", old), ("new", new))))
        for split in ("train", "validation")
    )  # fmt: skip
    if _labels_of(gallery) is None:
        raise UserError(f"{images}: the images have no labels to judge by")
    return ModelPair(name, *gallery, sample=sample)


def cut(pair: ModelPair, seed: int, most_queries: int, most_items: int, largest: int) -> Cut:
    """Return a sample, a gallery and two halves of the queries, each of limited size.

    At most ``largest`` items are in the sample, ``most_items`` in the gallery (and all that the
    queries seek), and ``most_queries`` in each half. The gallery is the same for every size of the
    sample. Raises UserError if the pair is too small.
    """
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(pair.new))
    if pair.queries is None:
        queries, judged = (pair.old, pair.new), None
        kept, rows = _apart(rows, 0 if pair.sample else int(_SAMPLE_SHARE * len(rows)))
        asked, rows = _apart(rows, min(int(_QUERY_SHARE * len(rows)), 2 * most_queries))
        wanted = rows[:0]
    else:
        queries, judged = pair.queries, pair.judged
        asked = rng.permutation(len(queries[1]))
        sought = np.zeros(len(pair.new), bool)
        if judged is not None:
            ids = judged if judged.ndim == 1 else judged[:, 1]
            place = rows_of_ids(pair.new.ids, ids)
            sought[place[place >= 0]] = True
            if judged.ndim == 1:
                # One id per query, in order: pair it with the query's id, to ask only half of them.
                judged = np.stack([queries[1].ids.astype(str), ids.astype(str)], axis=1)
        free = rows[~sought[rows]]
        kept, rest = _apart(free, 0 if pair.sample else int(_SAMPLE_SHARE * len(free)))
        asked = asked[: 2 * most_queries]
        wanted = np.flatnonzero(sought)
        if judged is not None:
            # The items that these queries seek stay; the other items make the search harder.
            mine = np.isin(judged[:, 0].astype(str), queries[1].ids[asked].astype(str))
            place = rows_of_ids(pair.new.ids, judged[mine, 1])
            wanted = np.unique(place[place >= 0])
        rows = rest
    rows = np.concatenate([wanted, rows[: max(0, most_items - len(wanted))]])
    half = len(asked) // 2
    if half < FEWEST or len(rows) < FEWEST:
        raise UserError(f"{pair.name}: {half} queries in {len(rows)} items are too few")
    if pair.sample is None:
        sample = _rows((pair.old, pair.new), kept[:largest])
    else:
        some = rng.permutation(len(pair.sample[1]))[:largest]
        sample = _rows(pair.sample, some)
    return Cut(
        _named(sample, "sample"),
        _rows((pair.old, pair.new), np.sort(rows)),
        tuple(_rows(queries, np.sort(part)) for part in (asked[:half], asked[half : 2 * half])),
        judged,
    )


def whole_of(sample, rows: np.ndarray, gallery) -> tuple[EmbeddingSet, EmbeddingSet]:
    """Return some items of a sample, followed by the gallery, as one set by each model."""
    made = []
    for known, items in zip(_rows(sample, rows), gallery, strict=True):
        labels = None
        if known.labels is not None and items.labels is not None:
            labels = np.concatenate([known.labels, items.labels])
        elif items.labels is not None:
            # Fitted items are no part of the gallery, so that their labels are never needed.
            labels = np.concatenate([np.full(len(known), -1), items.labels])
        made.append(
            EmbeddingSet.of(
                np.concatenate([known.vectors, items.vectors]),
                np.concatenate([known.ids.astype(str), items.ids.astype(str)]),
                labels,
                meta=items.meta,
            )
        )
    return tuple(made)


def _find(folder: Path, names) -> Path | None:
    paths = (folder / f"{name}{ending}" for name in names for ending in _ENDINGS)
    return next((path for path in paths if path.exists()), None)


def _one_of(role: str) -> str:
    return " or ".join(FILES[role])


def _both(found: dict, role: str, labels):
    """Return a role's sets by both models, or None. Raises UserError if only one is given."""
    parts = [found[f"{role}_{model}"] for model in ("old", "new")]
    if parts == [None, None]:
        return None
    if None in parts:
        raise UserError(f"{found['old'].parent}: give both {role}_old and {role}_new, or neither")
    made = paired(*(open_sample(part, role) for part in parts))
    if labels is not None:
        made = tuple(dataclasses.replace(part, labels=labels) for part in made)
    return made


def _labels_of(both):
    return next((part.labels for part in both if part.labels is not None), None)


def _apart(rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    return rows[:count], rows[count:]


def _rows(both, rows: np.ndarray):
    labels = _labels_of(both)
    parts = (take(part, rows) for part in both)
    if labels is None:
        return tuple(parts)
    return tuple(dataclasses.replace(part, labels=np.asarray(labels)[rows]) for part in parts)


def _named(both, prefix: str):
    """Return the sets with ids that do not occur in a gallery."""
    ids = np.array([f"{prefix} {i}" for i in range(len(both[0]))])
    return tuple(dataclasses.replace(part, ids=ids) for part in both)
