"""Find the tables that `tools.predict` reads: a file, the files in a folder, or those of a data set on the hub."""

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

from stages.runtime.errors import UserError
from stages.sources import hub
from stages.sources.manifest import PATTERNS, TABLE_EXTENSIONS, build_manifest, find_extension

DESCRIPTIONS = ("README.md", "state.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json")  # no tables


@dataclass(frozen=True)
class InputFile:
    """A table to be labelled.

    Attributes:
        name: relative to the folder that was given; for a single file, its name.
        extension: as in `TABLE_EXTENSIONS`.
        sha256: of its bytes.
    """

    path: Path
    name: str
    extension: str
    sha256: str


def find_files(given: str, subset: str | None) -> list[InputFile]:
    """The tables of a file, a folder, or a data set on the hub, in the order of their names.

    A data set on the hub is read at its present commit, which is printed.

    Args:
        subset: of the data set on the hub; None if it has only one.

    Raises:
        UserError: there is no such file, or no table in it.
    """
    path = Path(given)
    try:
        if path.exists():
            if subset:
                raise UserError("--subset: is for a data set on the hub; remove it")
            names = None
            manifest = build_manifest(path, given, None, "data")
            folder = path if path.is_dir() else path.parent
        elif hub.NAME.fullmatch(given):
            commit = hub.find_present_commit(given, "data")
            print(f"{given}: no such path here, so it is read from the hub, at commit {commit}")
            folder = hub.download(given, commit, "data", PATTERNS["data"])
            manifest = build_manifest(folder, given, commit, "data")
            hub.check_announced(folder, manifest, "data")
            names = _list_subset(folder, list(manifest["files"]), subset)
        else:
            raise UserError(f"{given}: no such file or folder; allowed: a path, or OWNER/NAME of a data set on the hub")
    except UserError as error:
        raise UserError(re.sub(r"params\.yaml: data\.(folder|name): ", "", str(error))) from error
    files = [
        InputFile(folder / name, name, find_extension(name), file["sha256"])
        for name, file in manifest["files"].items()
        if Path(name).name not in DESCRIPTIONS and (names is None or name in names)
    ]
    if not files:
        raise UserError(f"{given}: no table; allowed: *.{', *.'.join(TABLE_EXTENSIONS)}")
    return files


def _list_subset(folder: Path, names: list[str], subset: str | None) -> set[str]:
    """The files of a subset, as `datasets` assigns them. Raises UserError if there are several, and none is named."""
    from stages.data.split_files import list_splits  # imports `datasets`, which takes a second

    try:
        splits, _ = list_splits(folder, names, subset)
    except UserError as error:
        raise UserError(str(error).replace("params.yaml: data.subset:", "--subset:")) from error
    finally:
        with contextlib.suppress(OSError):  # `list_splits` made outs/, which stays if it has something in it
            Path("outs").rmdir()
    return {name for split in splits.values() for name in split}
