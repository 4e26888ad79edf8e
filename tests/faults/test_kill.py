"""Killed five times in five ways on its way through, the pipeline ends where an undisturbed one does."""

from types import SimpleNamespace

import pytest
from helpers import kill
from helpers.stages import run_stage_in_each

pytestmark = pytest.mark.slow

HITS = {  # each way once, at the moments where a half-done thing could be taken for a whole one
    "between two outs": "SIGTERM to the stage",
    "in a later checkpoint's save": "SIGKILL to the stage",
    "before a checkpoint is marked as whole": "SIGKILL to dvc",
    "before the checkpoints are removed": "SIGKILL to all",
    "between two metrics": "Ctrl-C",
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """(clone in which a run was killed and came through, contents of an undisturbed run, [(stage, epochs kept)])."""
    undisturbed = kill.small_clone(tmp_path_factory.mktemp("undisturbed"))
    for done in run_stage_in_each(",".join(kill.STAGES), [undisturbed.folder / "demo"]).values():
        assert done.returncode == 0, done.stdout + done.stderr
    expected = kill.contents(undisturbed)
    clone = kill.small_clone(tmp_path_factory.mktemp("killed"))
    hits = [
        SimpleNamespace(stage=moment[0], moment=moment, way=HITS[moment[1]], after=0)
        for moment in kill.MOMENTS
        if moment[1] in HITS
    ]
    struck = []
    kill.killed_run(clone, hits, expected, lambda hit, way, stage, kept: struck.append((stage, kept)))
    return clone, expected, struck


def test_killed_in_five_ways_nothing_is_lost_and_nothing_survives(killed):
    stages, kept = zip(*killed[2], strict=True)
    assert stages == ("download", "train_qlora", "train_qlora", "train_qlora", "analyze")
    assert kept[1] == 1
    assert kept[2] >= 2, "a stage whose dvc is gone may finish an epoch in the half second until it looks"
    assert kept[3] == kill.EPOCHS


@pytest.mark.parametrize(
    ("name", "ends_after", "refused"),
    [
        ("demo/dvc.lock", "", True),
        ("demo/dvc.lock", "stages:\n", True),
        ("demo/dvc.lock", "  tokenize:\n", True),
        ("demo/dvc.lock", "stages.train_qlora\n", False),
        ("demo/.dvc/tmp/rwlock", "", True),
    ],
)
def test_a_file_of_dvcs_own_that_was_cut_costs_no_training(killed, name, ends_after, refused):
    """DVC writes it in place. Cut, it is refused in words that name it, or good for less; all comes from the cache."""
    clone, expected, _ = killed
    path = clone.folder / name
    whole = path.read_text()
    path.write_text(whole[: whole.index(ends_after) + len(ends_after)])
    done = clone.dvc("repro")
    assert (done.returncode != 0) == refused, done.stdout + done.stderr
    if refused:
        assert kill.remove_cut(clone, done.stdout + done.stderr) == name
        done = clone.dvc("repro")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "train_qlora" not in done.ran
    assert kill.contents(clone) == expected
