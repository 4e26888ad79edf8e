"""Files and folders are written as a whole or not at all, and unreadable ones are reported in one line."""

import json
import subprocess
import sys
import time

import pandas as pd
import psutil
import pytest

from stages.runtime import files
from stages.runtime.errors import UserError


@pytest.fixture
def processes():
    """A running process, and a zombie: it has ended, and nobody has read its exit code."""
    running, ended = (subprocess.Popen([sys.executable, "-c", code]) for code in ("import time; time.sleep(60)", ""))
    while psutil.Process(ended.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    yield running, ended
    running.kill()
    for process in (running, ended):
        process.wait()


def test_the_temporary_folder_of_an_ended_process_is_removed(tmp_path, processes):
    temporary = [tmp_path / f".out.{process.pid}.tmp" for process in processes]
    for folder in temporary:
        folder.mkdir()
    with files.temporary_folder(tmp_path / "out"):
        assert [folder.exists() for folder in temporary] == [True, False]


def test_a_failed_write_leaves_the_former_file(tmp_path):
    (tmp_path / "out.json").write_text("old")
    with pytest.raises(RuntimeError), files.atomic_file(tmp_path / "out.json") as temporary:
        temporary.write_text("ne")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    assert (tmp_path / "out.json").read_text() == "old"


def test_a_folder_is_replaced_only_by_a_whole_one(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with pytest.raises(RuntimeError), files.atomic_folder(tmp_path / "out") as temporary:
        (temporary / "new").touch()
        raise RuntimeError
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "old"]
    with files.atomic_folder(tmp_path / "out") as temporary:
        (temporary / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "new"]


def test_json_has_no_nan_and_no_infinity(tmp_path):
    values = {"a": float("nan"), "b": {"c": float("inf"), "d": 1.5}, "e": [1, 2]}
    files.write_json(tmp_path / "metrics.json", values)
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"b": {"d": 1.5}, "e": [1, 2]}


@pytest.mark.parametrize("content", [None, b"", b"PAR1 truncated", b"\x00" * 100])
def test_an_unreadable_output_of_an_earlier_stage_is_reported_in_one_line(tmp_path, content):
    for name, read in (("table.parquet", files.read_table), ("value.json", files.read_json)):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}.*`dvc repro`"):
            read(tmp_path / name)


def test_a_truncated_parquet_file_is_reported_in_one_line(tmp_path):
    pd.DataFrame({"a": range(1000)}).to_parquet(tmp_path / "table.parquet")
    content = (tmp_path / "table.parquet").read_bytes()
    (tmp_path / "table.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"table\.parquet"):
        files.read_table(tmp_path / "table.parquet")
