"""Killed five times in five ways on its way through, the pipeline ends where an undisturbed one does."""

import random

import kill
import pytest

pytestmark = pytest.mark.slow


def test_five_kills_in_five_ways_change_nothing(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    undisturbed = kill.small_clone(tmp_path / "a")
    kill.finish(undisturbed)
    clone = kill.small_clone(tmp_path / "b")
    rng = random.Random(5)
    hits = [(rng.uniform(2, 20), way) for way in kill.WAYS]
    with (tmp_path / "log").open("w") as log:
        struck = kill.killed_run(clone, hits, log)
    assert len(struck) >= 4, f"too few were hit: {struck}"
    assert kill.results(clone) == kill.results(undisturbed)
