"""A full disk is reported in one line with the path and the free space, and no partial file is left."""

import errno
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
import yaml
from helpers.parameters import unpinned_params, use
from helpers.project import DEMO, NANO
from helpers.small_disk import fill, small_disk
from helpers.stages import error_line, run_module, stage_env, written
from huggingface_hub import constants
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from stages.runtime import files
from stages.runtime.errors import DiskFull, UserError
from stages.sources import hub

NUMBERS = np.random.default_rng(0).normal(size=200_000)
WORDS = Tokenizer(WordLevel({f"word {n}": n for n in range(50_000)}, unk_token="word 0"))
WRITERS = {
    "torch": lambda folder: torch.save({"a": torch.tensor(NUMBERS)}, folder / "a.pt"),
    "torch, a small file": lambda folder: (fill(folder, 0), torch.save({"a": torch.ones(3)}, folder / "a.pt")),
    "safetensors": lambda folder: safetensors.torch.save_file({"a": torch.tensor(NUMBERS)}, folder / "a.safetensors"),
    "tokenizers": lambda folder: WORDS.save(str(folder / "tokenizer.json")),
    "pyarrow": lambda folder: pq.write_table(pa.table({"a": NUMBERS}), folder / "a.parquet"),
    "pandas": lambda folder: pd.DataFrame({"a": NUMBERS}).to_parquet(folder / "a.parquet"),
    "csv": lambda folder: files.write_csv(folder / "a.csv", pd.DataFrame({"a": NUMBERS})),
    "json": lambda folder: files.write_json(folder / "a.json", {"a": NUMBERS.tolist()}),
    "numpy": lambda folder: np.save(folder / "a.npy", NUMBERS),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_for_every_writer_the_line_names_the_folder_and_no_partial_file_is_left(tmp_path, writer):
    with small_disk(tmp_path / "disk", 300_000) as disk:
        (disk / "out").mkdir()
        (disk / "out/old").write_text("from the last run")
        message = r"disk/out: not written \(.*; 0\.\d MB free there\); free some space, then run the same command again"
        with (
            pytest.raises(DiskFull, match=message),
            files.atomic_folder(disk / "out") as folder,
        ):
            WRITERS[writer](folder)
        assert [str(path.relative_to(disk)) for path in disk.rglob("*")] == ["out", "out/old"]


# Errors of libraries on a full disk: with an error number, without one, and from PyTorch without the reason.
DISK_FULL_ERRORS = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("Data processing error: I/O error: Disk quota exceeded (os error 122)"),
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 226240 vs 226132"),
    RuntimeError("[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file data/0"),
    RuntimeError("basic_ios::clear: iostream error"),
    OSError("200000 requested and 38384 written"),
]


@pytest.mark.parametrize("error", DISK_FULL_ERRORS, ids=str)
def test_a_full_disk_is_recognised_by_the_error_and_by_its_causes(tmp_path, error):
    with pytest.raises(DiskFull, match=r"a\.json: not written"), files.atomic_file(tmp_path / "a.json"):
        raise error
    with pytest.raises(DiskFull, match=r"a\.json: not written"), files.atomic_file(tmp_path / "a.json"):
        raise UserError("data: not readable") from error


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "Permission denied"), RuntimeError("a size"), KeyError("a")])
def test_another_error_is_raised_unchanged(tmp_path, error):
    with pytest.raises(type(error)) as raised, files.atomic_file(tmp_path / "a.json"):
        raise error
    assert raised.value is error


# The user's rows may be log lines. Errors of parsers and of this project quote them.
ERRORS_WITH_ROWS = [
    pa.ArrowInvalid("CSV parse error: Expected 2 columns, got 4: kernel: No space left on device,sda1,full,1"),
    KeyError("unexpected pos 226240 vs 226132"),
    UserError("column 'label' has 'No space left on device' in row 0, counted from 0; data.classes: a, b"),
]


@pytest.mark.parametrize("error", ERRORS_WITH_ROWS, ids=str)
def test_an_error_that_quotes_a_row_about_a_full_disk_is_not_one(tmp_path, error):
    with pytest.raises(type(error)) as raised, files.atomic_file(tmp_path / "a.json"):
        raise error
    assert raised.value is error


def test_a_file_on_another_full_disk_is_named(tmp_path):
    with small_disk(tmp_path / "disk", 300_000) as disk:
        fill(disk, 0)
        with (
            pytest.raises(DiskFull, match=r"disk/cache: not written \(.*; 0\.0 MB free there\)"),
            files.atomic_folder(tmp_path / "out"),
        ):
            raise OSError(errno.ENOSPC, "No space left on device", str(disk / "cache"))


def test_of_nested_outputs_the_outermost_is_named(tmp_path):
    """The inner path is in a temporary folder, which the user does not know."""
    with (
        pytest.raises(DiskFull, match=r"^\S+/adapter: not written \(No space left on device; "),
        files.atomic_folder(tmp_path / "adapter") as folder,
        files.atomic_file(folder / "base.json"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("filename", ["", ", '/nowhere/file'"])
def test_a_full_disk_outside_of_any_writer_is_reported_in_one_line(tmp_path, filename):
    code = "import errno, stages\nfrom stages.runtime import errors\n"
    code += f"def main(): raise OSError(errno.ENOSPC, 'No space left on device'{filename})\nerrors.run(main)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=stage_env(), capture_output=True, text=True)
    assert "MB free there" in error_line(done)
    assert ("/nowhere/file: not written" in error_line(done)) == bool(filename)


# --- the stages ---


def prepare_download(disk, free_bytes):
    """A folder for `download` on a disk with `free_bytes` left -> (folder, the file that fills the disk)."""
    raw = unpinned_params()
    for key, source in (("model", NANO), ("data", DEMO / "assets/everyday-nli")):
        use(raw, key, str(source))
    (disk / "run").mkdir()
    (disk / "run/params.yaml").write_text(yaml.safe_dump(raw))
    return disk / "run", fill(disk, free_bytes)


def run(stage, folder):
    """Run a stage in a fork, which needs no time to import."""
    return run_module(f"stages.{stage}", [], folder, stage_env())


@pytest.mark.parametrize("free_bytes", [8192, 100_000, 180_000])
def test_a_full_disk_in_download_is_reported_in_one_line_and_the_next_run_succeeds(tmp_path, free_bytes):
    with small_disk(tmp_path / "disk", 16_000_000) as disk:
        folder, filler = prepare_download(disk, free_bytes)
        line = error_line(run("download", folder))
        assert re.search(r"error: outs/\S+: not written \(No space left on device; 0\.\d MB free there\)", line)
        assert [path for path in folder.rglob("*") if path.is_file()] == [folder / "params.yaml"]
        filler.unlink()
        assert run("download", folder).returncode == 0


@pytest.mark.parametrize("free_bytes", [8192, 100_000])
def test_a_full_disk_in_tokenize_is_reported_in_one_line(tmp_path, free_bytes):
    with small_disk(tmp_path / "disk", 16_000_000) as disk:
        folder, _ = prepare_download(disk, 8_000_000)
        assert run("download", folder).returncode == 0
        before = written(folder)
        fill(folder, free_bytes)
        line = error_line(run("tokenize", folder))
        assert "outs/tokenized: not written (No space left on device; 0.0 MB free there)" in line
        (folder / "filler").unlink()
        assert written(folder) == before


def test_a_full_hub_cache_is_named_in_the_line(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("Data processing error: I/O error: No space left on device (os error 28)")  # from hf_xet

    monkeypatch.setattr(hub, "_find_commit", lambda *_: ("0" * 40, None))
    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(DiskFull, match=rf"^{constants.HF_HUB_CACHE}: not written \(No space left on device; "):
        hub.download("some/model", "0" * 40, "model", ["*.json"])
