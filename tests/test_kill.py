"""Killed five times in five ways on its way through, the pipeline ends where an undisturbed one does."""

from types import SimpleNamespace

import kill
import pytest
from conftest import run_stage_in_each

pytestmark = pytest.mark.slow

HITS = {  # each way once, at the moments where a half-done thing could be taken for a whole one
    "between two outs": "SIGTERM to the stage",
    "in a later checkpoint's save": "SIGKILL to the stage",
    "before a checkpoint is marked as whole": "SIGKILL to dvc",
    "before the checkpoints are removed": "SIGKILL to all",
    "between two metrics": "Ctrl-C",
}


def test_killed_in_five_ways_nothing_is_lost_and_nothing_survives(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    undisturbed = kill.small_clone(tmp_path / "a")
    for done in run_stage_in_each(",".join(kill.STAGES), [undisturbed.folder / "embedded"]).values():
        assert done.returncode == 0, done.stdout + done.stderr
    clone = kill.small_clone(tmp_path / "b")
    hits = [
        SimpleNamespace(stage=moment[0], moment=moment, way=HITS[moment[1]], after=0)
        for moment in kill.MOMENTS
        if moment[1] in HITS
    ]
    struck = []
    kill.killed_run(clone, hits, kill.contents(undisturbed), lambda hit, way, stage, kept: struck.append((stage, kept)))
    stages, kept = zip(*struck, strict=True)
    assert stages == ("download", "train_qlora", "train_qlora", "train_qlora", "analyze")
    assert kept[1] == 1
    assert kept[2] >= 2, "a stage whose dvc is gone may finish an epoch in the half second until it looks"
    assert kept[3] == kill.EPOCHS
