"""A training and the stages before it, killed five times in five ways, end with the files of an undisturbed run."""

from types import SimpleNamespace

import pytest
from helpers import kill
from helpers.stages import run_stage_in_each

pytestmark = pytest.mark.slow

HITS = {  # {moment: way}: each way once, at moments when half-written files could be mistaken for complete ones
    "between two outs": "SIGTERM to the stage",
    "in a save in an epoch's middle": "SIGKILL to the stage",
    "before a checkpoint of an epoch's middle is marked as whole": "SIGKILL to dvc",
    "while an old checkpoint is removed": "Ctrl-C",
    "before the checkpoints are removed": "SIGKILL to all",
}
TARGET = "train_qlora"  # the stages after it would take half of the time


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """(clone of a run that was killed and resumed, contents of an undisturbed run, [(stage, step saved, seconds)])."""
    undisturbed = kill.small_clone(tmp_path_factory.mktemp("undisturbed"))
    for done in run_stage_in_each("download,tokenize,train_qlora", [undisturbed.folder / "demo"]).values():
        assert done.returncode == 0, done.stdout + done.stderr
    expected = kill.contents(undisturbed)
    clone = kill.small_clone(tmp_path_factory.mktemp("killed"))
    hits = [
        SimpleNamespace(stage=moment[0], moment=moment, way=HITS[moment[1]], after=0, in_training=False)
        for moment in kill.MOMENTS
        if moment[1] in HITS
    ]
    kills = []
    kill.killed_run(clone, hits, expected, lambda hit, way, *kill: kills.append(kill), TARGET, forks=True)
    return clone, expected, kills


def test_after_kills_in_five_ways_no_result_is_lost_and_no_process_survives(killed):
    stages, saved, lost = zip(*killed[2], strict=True)
    assert stages == ("download", *4 * ["train_qlora"])
    assert saved[1] < kill.STEPS and lost[1] > 0, "the first checkpoint was not whole"
    assert 0 < saved[2] <= saved[3] < saved[4] == kill.EPOCHS * kill.STEPS
    assert lost[2] == lost[3] == 0, "the training saved a checkpoint when its dvc ended, and after Ctrl-C"


@pytest.mark.parametrize(
    ("name", "ends_after", "rejected"),
    [
        ("demo/dvc.lock", "", True),
        ("demo/dvc.lock", "stages:\n", True),
        ("demo/dvc.lock", "  tokenize:\n", True),
        ("demo/dvc.lock", "stages.train_qlora\n", False),
        ("demo/.dvc/tmp/rwlock", "", True),
    ],
)
def test_a_truncated_file_of_dvc_causes_no_new_training(killed, name, ends_after, rejected):
    """DVC writes these files in place. It names a cut file in an error, or uses its rest. The cache has the results."""
    clone, expected, _ = killed
    path = clone.folder / name
    whole = path.read_text()
    path.write_text(whole[: whole.index(ends_after) + len(ends_after)])
    done = clone.dvc("repro", TARGET)
    assert (done.returncode != 0) == rejected, done.stdout + done.stderr
    if rejected:
        assert kill.remove_cut(clone, done.stdout + done.stderr) == name
        done = clone.dvc("repro", TARGET)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "train_qlora" not in done.ran
    assert kill.contents(clone) == expected
