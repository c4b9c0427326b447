"""tools/speed/busy.py: tasks beside busy processes come near their share of the machine."""

import pytest

from tools.speed import busy
from tools.speed.busy import Measured


@pytest.mark.parametrize(
    ("alone", "beside", "expected"),
    [
        # One thread of 2 s that gets a fifth of a processor, as the loops do, takes 10 s.
        (Measured(2, 2), Measured(10, 2, 2), 1),
        # It took twice as long; two threads did the work of one; some work was wasted.
        (Measured(2, 2), Measured(20, 2, 4), 2),
        (Measured(1, 2), Measured(10, 2, 2), 2),
        (Measured(2, 2), Measured(30, 6, 6), 3),
        # Beside other processes it takes longer, but the share accounts for that.
        (Measured(8, 2), Measured(40, 2, 2), 1),
        # Compilation in only the first run does not count as needed.
        (Measured(4, 4), Measured(10, 2, 2), 1),
    ],
)
def test_the_ratio(alone, beside, expected):
    assert busy.ratio(alone, beside) == pytest.approx(expected)


@pytest.mark.slow(minutes=0.3)
@pytest.mark.multiprocess
def test_a_fit_takes_no_more_than_three_times_its_share(monkeypatch):
    """Threads that wait by spinning would: an SVD of 384 × 384 took 40 s instead of 0.6 s.

    The command measures the other tasks, too.
    """
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)  # or there would be none to spin
    for _ in range(3):  # other programs may disturb a measurement, but not each of three
        alone, beside = busy.measure("fit", 0), busy.measure("fit", 4)
        if busy.ratio(alone, beside) < 3:
            break
    assert busy.ratio(alone, beside) < 3, (alone, beside)
