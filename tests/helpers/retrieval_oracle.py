"""Slow, obviously correct retrieval metrics, one query and one point at a time."""

from fractions import Fraction

import numpy as np
from sklearn.metrics import average_precision_score


def float_distances(query, gallery, metric):
    """Return (Q, G) distances by explicit loops in float64."""
    result = np.empty((len(query), len(gallery)))
    for i, q in enumerate(np.asarray(query, np.float64)):
        for j, g in enumerate(np.asarray(gallery, np.float64)):
            if metric == "l2":
                result[i, j] = np.sqrt(np.sum((q - g) ** 2))
            else:
                norms = max(np.linalg.norm(q), 1e-12) * max(np.linalg.norm(g), 1e-12)
                result[i, j] = 1 - np.sum(q * g) / norms
    return result


def exact_distances(query, gallery, metric):
    """Return (Q, G) integers that order pairs of integer vectors exactly as distances do.

    All numbers are rational: the squared distance, or −sign·cos² times the query's norm.
    """
    result = np.empty((len(query), len(gallery)), np.int64)
    for i, q in enumerate(query):
        row = []
        for g in gallery:
            q_, g_ = [int(x) for x in q], [int(x) for x in g]
            if metric == "l2":
                row.append(Fraction(sum((a - b) ** 2 for a, b in zip(q_, g_, strict=True))))
            else:
                dot = sum(a * b for a, b in zip(q_, g_, strict=True))
                row.append(Fraction(-dot * abs(dot), max(sum(b * b for b in g_), 1)))
        rank = {value: place for place, value in enumerate(sorted(set(row)))}
        result[i] = [rank[value] for value in row]
    return result


def metrics_of_distances(distance, query_labels, gallery_labels, leave_one_out, ks=(1, 5)):
    """Return CMC (ties: lower gallery row first) and scikit-learn's mAP, from a full matrix.

    All are NaN if no query has a positive.
    """
    hits, aps = {k: [] for k in ks}, []
    for i, row in enumerate(distance):
        others = [j for j in range(len(row)) if not (leave_one_out and j == i)]
        positive = [bool(gallery_labels[j] == query_labels[i]) for j in others]
        ranked = sorted(range(len(others)), key=lambda m: (row[others[m]], m))
        for k in ks:
            hits[k].append(any(positive[m] for m in ranked[:k]))
        if any(positive):
            aps.append(average_precision_score(positive, [-row[j] for j in others]))
    if not aps:
        return dict.fromkeys([*(f"cmc@{k}" for k in ks), "map"], float("nan"))
    values = {f"cmc@{k}": float(np.mean(hits[k])) for k in ks}
    return values | {"map": float(np.mean(aps))}


def curve_of_distances(to_new, to_old, labels, order, steps, ks=(1, 5)):
    """Return the curve by its definition: permute the items, then replace the first c columns."""
    to_new, to_old = to_new[order][:, order], to_old[order][:, order]
    labels, n = np.asarray(labels)[order], len(labels)
    points = []
    for i in range(steps + 2):
        cut = i * n // (steps + 1)
        mixed = np.concatenate([to_new[:, :cut], to_old[:, cut:]], axis=1)
        points.append(metrics_of_distances(mixed, labels, labels, True, ks))
    return {name: np.array([point[name] for point in points]) for name in points[0]}


def l1_rows(rows):
    """Return rows of unit L1 norm, which the reference's "cosine" compares."""
    rows = np.asarray(rows, np.float64)
    return rows / np.maximum(np.abs(rows).sum(axis=1, keepdims=True), 1e-12)
