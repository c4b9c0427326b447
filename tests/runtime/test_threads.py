"""Threads of linear algebra: quotas, results that do not depend on cores, errors in their place."""

import itertools
import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from fct_jax.runtime import threads


def blas_threads():
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ({"cpu.max": "nonsense"}, 64),
        ({}, 64),
    ],
)
def test_the_quota_of_a_container_counts(tmp_path, monkeypatch, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(threads, "_CGROUP", tmp_path)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: range(64), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads.available() == expected


@pytest.mark.parametrize(("wanted", "expected"), [("2", 2), ("0", 8), ("x", 8), ("3,1", 3)])
def test_omp_num_threads_counts(tmp_path, monkeypatch, wanted, expected):
    monkeypatch.setattr(threads, "_CGROUP", tmp_path)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: range(8), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    assert threads.available() == expected


def test_single_is_nested_and_restored():
    np.ones((2, 2)) @ np.ones((2, 2))
    with threadpool_limits(2, "blas"):  # the whole suite may be run with one
        with threads.single():
            with threads.single():
                assert blas_threads() == {1}
            assert blas_threads() == {1}
        assert blas_threads() == {2}


@pytest.mark.parametrize("workers", [1, 4])
def test_results_come_in_order_with_few_taken_ahead(monkeypatch, workers):
    monkeypatch.setattr(threads, "available", lambda: workers)
    taken = []
    items = (taken.append(item) or item for item in range(50))
    for number, found in enumerate(threads.in_order(lambda item: item**2, items)):
        assert found == number**2
        assert blas_threads() == {1}  # one thread asks; the limit applies to the whole process
        assert len(taken) <= number + 1 + 2 * workers
    assert number == 49


def test_an_error_comes_where_its_result_is_due(monkeypatch):
    monkeypatch.setattr(threads, "available", lambda: 3)

    def inverse(item):
        return 1 / item

    results = threads.in_order(inverse, [1, 2, 0, 4])
    assert [next(results), next(results)] == [1, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert blas_threads() != set()


def test_items_are_taken_ahead_by_a_thread_of_their_own():
    taken = []

    def items():
        for number in range(10):
            taken.append(threading.get_ident())
            yield number
        raise OSError("the disk is gone")

    found = threads.ahead(items(), depth=3)
    assert next(found) == 0
    received = [0]
    with pytest.raises(OSError, match="is gone"):
        for item in found:
            received.append(item)
            assert len(taken) <= item + 4
    assert received == list(range(10))
    assert len(set(taken)) == 1 and taken[0] != threading.get_ident()


def test_a_reader_that_nobody_follows_ends():
    found = threads.ahead(itertools.count())
    next(found)
    found.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("fct_jax")]
