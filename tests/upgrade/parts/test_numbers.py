"""The numbers of parts that schedulers give."""

import pytest

from fct_jax.errors import UserError
from fct_jax.upgrade.parts.numbers import Part


@pytest.mark.parametrize(
    ("environment", "text", "expected"),
    [
        ({"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "16"}, "auto", "part 6/16"),
        (
            {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_STEP": "2"},
            "auto/8",
            "part 3/8",
        ),
        ({"JOB_COMPLETION_INDEX": "0", "JOB_COMPLETIONS": "4"}, "auto", "part 1/4"),
        ({"JOB_COMPLETION_INDEX": "3"}, "auto/4", "part 4/4"),
    ],
)
def test_numbers_of_schedulers(environment, text, expected):
    assert str(Part.of(text, environment)) == expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"JOB_COMPLETION_INDEX": "3"}, "JOB_COMPLETIONS is not set; give the number"),
        ({"SLURM_ARRAY_TASK_ID": "x", "SLURM_ARRAY_TASK_COUNT": "2"}, "invalid literal"),
        ({"JOB_COMPLETION_INDEX": "4", "JOB_COMPLETIONS": "4"}, r"number 5 of 4\): parts count"),
    ],
)
def test_schedulers_that_give_no_part(environment, expected):
    with pytest.raises(UserError, match=expected):
        Part.of("auto", environment)
