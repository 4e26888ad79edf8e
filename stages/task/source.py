"""The three splits of a data set, read from its files as they are."""

from collections.abc import Iterable
from pathlib import Path

import datasets
import pyarrow as pa

from stages.runtime.errors import UserError, first_line
from stages.runtime.files import scratch_folder
from stages.runtime.params import Data
from stages.sources.manifest import TABLES
from stages.task.task import SPLITS


def read_splits(folder: Path, names: Iterable[str], data: Data) -> dict[str, pa.Table]:
    """Read the splits of a folder by `datasets`, all columns.

    Only the named files are read, those that the manifest pins, and never out of the cache of `datasets`: it takes a
    file of the same path and time for the same rows.

    Args:
        names: files, relative to `folder`.
        data: the group `data` of params.yaml: `subset` and `splits`, names or slices in the notation of `datasets`.

    Returns:
        {split: arrow table}; its schema carries what `datasets` knows of the columns, the names of classes above all.

    Raises:
        UserError: naming the key: no table, not readable, no such subset, no such split, an empty slice.
    """
    if not set(names) - {"README.md"}:
        raise UserError(f"data.name: {folder}: no table here; allowed: *.{', *.'.join(TABLES)}")
    with scratch_folder("outs/data_source") as scratch:
        for name in names:
            (scratch / "files" / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / "files" / name).symlink_to((Path(folder) / name).resolve())
        datasets.disable_progress_bars()  # seconds even for SNLI, and they would stay in every log
        builder = _builder(scratch, folder, data.subset)
        try:
            builder.download_and_prepare()
        except Exception as error:  # `datasets` raises a dozen kinds here, plain Exception among them
            raise UserError(
                f"data.name: {folder}: not readable as a data set ({_reason(error, scratch, folder)})"
            ) from error
        return {split: _split(builder, split, getattr(data.splits, split)) for split in SPLITS}


def _builder(scratch, folder, subset):
    options = {"cache_dir": str(scratch / "cache")}
    try:
        builder = datasets.load_dataset_builder(str(scratch / "files"), subset, **options)
        if hasattr(builder.config, "keep_default_na"):  # csv and tsv
            options |= {"keep_default_na": False, "na_values": [""]}  # else a class called NA or None would be no label
            builder = datasets.load_dataset_builder(str(scratch / "files"), subset, **options)
        return builder
    except ValueError as error:
        try:
            has = datasets.get_dataset_config_names(str(scratch / "files"))
        except Exception:  # not a matter of subsets
            has = []
        if (subset is None and len(has) < 2) or subset in has:
            reason = _reason(error, scratch, folder)
            raise UserError(f"data.name: {folder}: not readable as a data set ({reason})") from error
        allowed = "null, since it has no subsets" if has == ["default"] else ", ".join(has)
        raise UserError(
            f"params.yaml: data.subset: {'null' if subset is None else subset}; allowed with {folder}: {allowed}"
        ) from error
    except Exception as error:
        raise UserError(
            f"data.name: {folder}: not readable as a data set ({_reason(error, scratch, folder)})"
        ) from error


def _split(builder, split, wanted):
    try:
        rows = builder.as_dataset(split=wanted, in_memory=True)
    except Exception as error:  # no such split, no such slice, a percentage over 100
        has = ", ".join(builder.info.splits)
        raise UserError(
            f"params.yaml: data.splits.{split}: {wanted} ({first_line(error)}); "
            f"allowed: the data's own splits ({has}), or slices of them such as {next(iter(builder.info.splits))}[:90%]"
        ) from error
    if not len(rows):
        raise UserError(f"params.yaml: data.splits.{split}: {wanted} has no rows")
    return rows.data.table.replace_schema_metadata(rows.features.arrow_schema.metadata)


def _reason(error, scratch, folder):
    return first_line(error.__cause__ or error).replace(f"{scratch}/files", str(folder))
