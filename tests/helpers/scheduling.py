"""When a pytest-xdist worker dies, the test that it was running fails, and the others go on.

With ``--dist loadfile``, pytest-xdist gives a dead worker's file to another worker together with
the test that killed it. That test then kills one worker after the other, and the rest of the file
is never run.
"""

import pytest
from xdist.scheduler import LoadFileScheduling


class Scheduling(LoadFileScheduling):
    """Scheduling by files that counts a test as done when it has killed its worker."""

    def remove_node(self, node):
        """Give the rest of the worker's files to others; return the test that killed it."""
        files = self.assigned_work[node].values()
        at = [(tests, name) for tests in files for name, done in tests.items() if not done]
        if not at:
            return super().remove_node(node)
        tests, killer = at[0]
        tests[killer] = True
        super().remove_node(node)
        return killer


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    if config.getvalue("dist") == "loadfile":
        return Scheduling(config, log)
    return None
