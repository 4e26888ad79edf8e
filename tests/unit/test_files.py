"""Files that are whole or not there: what killed processes leave."""

import subprocess
import sys
import time

import psutil
import pytest

from stages.runtime import files


@pytest.fixture
def processes():
    """A process that runs, and one that has ended and is a zombie, since nobody has asked for its exit code."""
    running, ended = (subprocess.Popen([sys.executable, "-c", code]) for code in ("import time; time.sleep(60)", ""))
    while psutil.Process(ended.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    yield running, ended
    running.kill()
    for process in (running, ended):
        process.wait()


def test_what_a_process_left_is_removed_once_it_has_ended(tmp_path, processes):
    left = [tmp_path / f".out.{process.pid}.tmp" for process in processes]
    for folder in left:
        folder.mkdir()
    with files.temporary_folder(tmp_path / "out"):
        assert [folder.exists() for folder in left] == [True, False]
