"""The pipeline, killed five times in five ways while it runs, ends with the files of an undisturbed run."""

from types import SimpleNamespace

import pytest
from helpers import kill
from helpers.stages import run_stage_in_each

pytestmark = pytest.mark.slow

HITS = {  # {moment: way}: each way once, at moments when half-written files could be mistaken for complete ones
    "between two outs": "SIGTERM to the stage",
    "in a later checkpoint's save": "SIGKILL to the stage",
    "before a checkpoint is marked as whole": "SIGKILL to dvc",
    "before the checkpoints are removed": "SIGKILL to all",
    "between two metrics": "Ctrl-C",
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """(clone of a run that was killed and resumed, contents of an undisturbed run, [(stage, epochs saved)])."""
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
    kills = []
    kill.killed_run(clone, hits, expected, lambda hit, way, stage, saved: kills.append((stage, saved)))
    return clone, expected, kills


def test_after_kills_in_five_ways_no_result_is_lost_and_no_process_survives(killed):
    stages, saved = zip(*killed[2], strict=True)
    assert stages == ("download", "train_qlora", "train_qlora", "train_qlora", "analyze")
    assert saved[1] == 1
    assert saved[2] >= 2, "a stage checks for its dvc every half second, and may finish an epoch meanwhile"
    assert saved[3] == kill.EPOCHS


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
    done = clone.dvc("repro")
    assert (done.returncode != 0) == rejected, done.stdout + done.stderr
    if rejected:
        assert kill.remove_cut(clone, done.stdout + done.stderr) == name
        done = clone.dvc("repro")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "train_qlora" not in done.ran
    assert kill.contents(clone) == expected
