"""Read the three splits of a data set from its files."""

import glob
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets.data_files import DataFilesDict, get_data_patterns
from datasets.table import table_cast
from huggingface_hub import DatasetCard

from stages.data.compression import decompress_zst
from stages.data.csv_and_json import check_encoding, check_json, is_same_encoding, read_csv
from stages.data.row_places import add_places, drop_places, number_csv_rows, number_json_rows
from stages.data.split_column import split_by_column
from stages.data.task import SPLITS
from stages.data.xlsx import read_xlsx
from stages.runtime.errors import UserError, first_line
from stages.runtime.files import temporary_folder
from stages.runtime.params import Data, Read
from stages.sources.manifest import TABLE_EXTENSIONS, find_extension

FORMATS = {"jsonl": "json", "ndjson": "json"}  # {extension: format}, where they differ
READERS = {"tsv": "csv", "xlsx": "csv"}  # {format: builder of `datasets` that reads it}, where they differ
STATE = "state.json"  # `save_to_disk` writes this file next to its arrow files

Files = dict[str, dict[str, str]]  # {split of the data set: {link: name of the file}}


def read_splits(folder: Path, names: Iterable[str], data: Data, with_places: bool = False) -> dict[str, pa.Table]:
    """Read the splits of a data set in a folder, and print the files of each split.

    `datasets` decides which files belong to a split and reads them, except csv and tsv files, whose cells are read as
    text. Only the named files are read: the manifest pins them. The cache of `datasets` is never read: it would return
    old rows for a changed file with the same path and time.

    Args:
        names: files, relative to `folder`.
        data: the section `data` of params.yaml. `splits` are names or slices in the notation of `datasets`, of the data
            set's own splits, or of the values of the column `split`. A key in `read` replaces the same key in the
            `configs` of README.md.
        with_places: append the columns of `row_places`, which say where each row is.

    Returns:
        {split: arrow table} of the splits that `data.splits` names, with the columns that all files of the split have.
        The schema has the features of `datasets`, above all the names of classes.

    Raises:
        UserError: no table, a file that is not readable, no such subset, no such split, an empty slice. The error names
            the file or the key.
    """
    names = _leave_out_states(names)
    if not any(_format(name) for name in names):
        raise UserError(f"data: {folder}: no table here; allowed: *.{', *.'.join(TABLE_EXTENSIONS)}")
    with temporary_folder("outs/data_source") as scratch:
        scratch = scratch.resolve()
        links = _link_files(folder, names, scratch / "files")
        datasets.disable_progress_bars()  # reading takes seconds even for SNLI, and the bars would fill every log
        builder, files = _assign_files(folder, links, scratch, data.subset)
        _check_read_keys(files, data.read)
        specs = {split: spec for split in SPLITS if (spec := getattr(data.splits, split)) is not None}
        datasets.logging.set_verbosity(logging.CRITICAL)  # it would log each error, with the names of the links
        sources = {"rows": list(files)} if data.split else _source_splits({name: name for name in files}, specs)
        needed = {source for names in sources.values() for source in names}
        tables = {
            source: _read_split(builder, source, files[source], scratch, folder, data)
            for source in files
            if source in needed
        }
    read_files = {
        split: [name for source in names for name in files[source].values()] for split, names in sources.items()
    }
    print("; ".join(f"{split} from {_list_some(names)}" for split, names in read_files.items()))
    read = {name for names in read_files.values() for name in names}
    if unread := sorted(name for name in links.values() if _format(name) and name not in read):
        print(f"not read, since data.splits names no split with them: {_list_some(unread)}")
    if data.split:
        tables = _split_rows(tables, specs, data.split)
    splits = {split: _slice_split(tables, specs, split) for split in specs}
    return splits if with_places else {split: drop_places(table) for split, table in splits.items()}


def _split_rows(tables: dict[str, pa.Table], specs: dict[str, str], column: str) -> dict[str, pa.Table]:
    """{value of `data.split`: its rows}, of all the data set's own splits that have this column."""
    with_column = {source: rows for source, rows in tables.items() if column in rows.column_names} or tables
    if others := tables.keys() - with_column:
        print(f"no column {column}, so not used: split {' and '.join(sorted(others))}")
    rows = _concatenate(with_column, "+".join(with_column))
    values = split_by_column(rows, column)
    named = {value for names in _source_splits(_describe(values), specs).values() for value in names}
    counts = {value: len(table) for value, table in values.items() if value not in named}
    counts["empty"] = len(rows) - sum(map(len, values.values()))
    if left_out := [f"{count:,} {value}" for value, count in counts.items() if count]:
        print(f"column {column}: rows in none of data.splits: {', '.join(left_out)}")
    return values


def _describe(tables: Mapping[str, pa.Table]) -> dict[str, str]:
    """{split: its name and number of rows}."""
    return {name: f"{name} ({len(rows):,} rows)" for name, rows in tables.items()}


def list_splits(folder: Path, names: Iterable[str], subset: str | None) -> tuple[dict[str, list[str]], bool]:
    """({split of the data set: names of its files}, whether `configs` in README.md assigns them).

    Args:
        folder, names: as for `read_splits`.
        subset: `data.subset`.
    """
    with temporary_folder("outs/data_source") as scratch:
        scratch = scratch.resolve()
        links = _link_files(folder, _leave_out_states(names), scratch / "files")
        datasets.disable_progress_bars()
        _, files = _assign_files(folder, links, scratch, subset)
        configs = _read_configs(folder, scratch)
    return {split: list(assigned.values()) for split, assigned in files.items()}, bool(configs)


def _leave_out_states(names: Iterable[str]) -> list[str]:
    names = list(names)
    states = {Path(name).with_name(STATE) for name in names if _format(name) == "arrow"}
    return [name for name in names if Path(name) not in states]


def _format(name: str) -> str:
    """The format of a table by its file's name: csv, tsv, json, parquet or arrow; empty for another file."""
    extension = find_extension(name).partition(".")[0]
    return FORMATS.get(extension, extension)


def _link_files(folder: Path, names: list[str], target: Path) -> dict[str, str]:
    """Link to the named files, with extensions in lower case as `datasets` expects -> {link: name of the file}."""
    links: dict[str, str] = {}
    for name in names:
        link = target / (name[: len(name) - len(find_extension(name))] + find_extension(name))
        if find_extension(name) == "xlsx":  # which `datasets` does not know: it only assigns the file to a split
            link = link.with_name(f"{link.name}.csv")
        if str(link) in links:
            raise UserError(f"data: {folder}: {links[str(link)]} and {name} differ only in case; rename one")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to((Path(folder) / name).resolve())
        links[str(link)] = name
    return links


def _assign_files(
    folder: Path, links: dict[str, str], scratch: Path, subset: str | None
) -> tuple[datasets.DatasetBuilder, Files]:
    """Let `datasets` assign the files to splits: by `configs` in README.md, or else by their names."""
    configs = _read_configs(folder, scratch)
    if not configs:
        # The builder's own assignment is not used: it silently leaves out all formats except the most frequent one.
        files = _name_files(_find_files(scratch / "files"), links, folder)
        _check_single_format(files, folder)
    builder = _load_builder(scratch, folder, subset, bool(configs))
    if configs:
        files = _name_files(builder.config.data_files, links, folder)
        _check_single_format(files, folder)
    _check_reader(files, folder, builder)
    return builder, files


def _read_configs(folder: Path, scratch: Path) -> list:
    """Read `configs` in the folder's README.md, which tells `datasets` the files of each split."""
    card = scratch / "files" / "README.md"
    if not card.exists():
        return []
    try:
        configs = DatasetCard.load(card).data.get("configs") or []
    except Exception as error:  # not UTF-8, not YAML, not the metadata of a data set
        mark = getattr(error, "problem_mark", None)  # counts from 0 and does not count the first line, ---
        place = f"line {mark.line + 2}: {error.problem}" if mark else first_line(error)  # type: ignore[attr-defined]
        raise UserError(f"{folder}/README.md: its header is not readable as YAML ({place}); correct it") from error
    paths = [(config.get("data_files"), config.get("data_dir")) for config in configs if isinstance(config, dict)]
    for url in re.findall(r"\w+://[^\s'\"]+", str(paths)):  # checked here, before `datasets` opens a connection
        raise _not_pinned(folder, url)
    return configs


def _not_pinned(folder: Path, path: str) -> UserError:
    return UserError(f"{folder}/README.md: configs: {path} is not one of the tables in {folder}; name only those")


def _load_builder(scratch: Path, folder: Path, subset: str | None, has_configs: bool) -> datasets.DatasetBuilder:
    try:
        return datasets.load_dataset_builder(str(scratch / "files"), subset, cache_dir=str(scratch / "cache"))
    except Exception as error:
        try:
            subsets = datasets.get_dataset_config_names(str(scratch / "files"))
        except Exception:  # the error is not about the subset
            subsets = []
        if not isinstance(error, ValueError) or (subset is None and len(subsets) < 2) or subset in subsets:
            place = f"{folder}/README.md: configs" if has_configs else f"data: {folder}"
            raise UserError(f"{place}: not readable as a data set ({_reason(error, scratch, folder)})") from error
        allowed = "null, since it has no subsets" if subsets == ["default"] else ", ".join(subsets)
        raise UserError(
            f"params.yaml: data.subset: {'null' if subset is None else subset}; allowed with {folder}: {allowed}"
        ) from error


def _find_files(folder: Path) -> DataFilesDict:
    """{split of the data set: files}, as `datasets` assigns them by their names."""
    return DataFilesDict.from_patterns(get_data_patterns(str(folder)), base_path=str(folder))


def _name_files(data_files: DataFilesDict, links: dict[str, str], folder: Path) -> Files:
    """Map the links of each split to the files' names, and reject files that the manifest does not pin."""
    files: Files = {}
    for split, paths in data_files.items():
        for path in map(str, paths):
            if not _format(links.get(path, "")):
                raise _not_pinned(folder, links.get(path, path))
            files.setdefault(str(split), {})[path] = links[path]
    return files


def _check_single_format(files: Files, folder: Path) -> None:
    formats: dict[str, list[str]] = {}
    for names in files.values():
        for name in names.values():
            formats.setdefault(_format(name), []).append(name)
    if len(formats) > 1:
        listed = ", ".join(f"{kind} ({_list_some(names)})" for kind, names in sorted(formats.items()))
        raise UserError(
            f"data: {folder}: tables of {len(formats)} kinds: {listed}; keep one kind there, "
            "or name the files of each split in its README.md, under `configs`"
        )


def _check_reader(files: Files, folder: Path, builder: datasets.DatasetBuilder) -> None:
    """Reject files that `datasets` would read in another format: it takes the format of the first config for all."""
    names = next(iter(files.values()), {}).values()
    kind = _format(next(iter(names), ""))
    if kind and builder.name not in (kind, READERS.get(kind)):
        raise UserError(
            f"{folder}/README.md: configs: {_list_some(names)} would be read as {builder.name}, "
            "as `datasets` reads the files of the first config; keep tables of one kind in the folder"
        )


def _source_splits(available: dict[str, str], specs: dict[str, str]) -> dict[str, list[str]]:
    """{split: the splits of the data set, or values of `data.split`, from which `data.splits` takes its rows}.

    Args:
        available: {split of the data set: how errors list it}.
        specs: {split: its value in `data.splits`}.
    """
    lengths = dict.fromkeys(available, 100)
    sources = {}
    for split, spec in specs.items():
        try:
            sources[split] = list(dict.fromkeys(name for name, _, _ in _parse_spec(spec, lengths)))
        except Exception as error:  # no such split, a percentage over 100
            raise _wrong_split(available, specs, split, first_line(error)) from error
    return sources


def _parse_spec(spec: str, lengths: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """Names and slices of splits, such as `a[:90%]+b` -> [(split, first row, row after the last)].

    Args:
        lengths: {split: number of rows}. The notation of `datasets` has only letters, digits and _ in names, but the
            values of `data.split` may have others.
    """
    aliases = {name: name if re.fullmatch(r"\w+", name) else f"__{i}__" for i, name in enumerate(lengths)}
    instructions = []
    for part in [spec] if spec in lengths else spec.split("+"):
        name = part.strip() if part.strip() in lengths else re.split(r"[\[(]", part)[0].strip()
        if name not in lengths:
            raise ValueError(f'Unknown split "{name}"')
        instructions.append(aliases[name] + part.strip()[len(name) :])
    names = {alias: name for name, alias in aliases.items()}
    lengths = {alias: lengths[name] for name, alias in aliases.items()}
    parts = datasets.ReadInstruction.from_spec("+".join(instructions)).to_absolute(lengths)
    return [(names[part.splitname], part.from_, part.to) for part in parts]


def _slice_split(tables: dict[str, pa.Table], specs: dict[str, str], split: str) -> pa.Table:
    try:
        parts = _parse_spec(specs[split], {source: len(rows) for source, rows in tables.items()})
    except Exception as error:  # pct1_dropremainder of fewer than 100 rows
        raise _wrong_split(_describe(tables), specs, split, first_line(error)) from error
    slices = [tables[source].slice(start, max(end - start, 0)) for source, start, end in parts]
    if not any(map(len, slices)):
        raise _wrong_split(_describe(tables), specs, split, "it has no data")
    return slices[0] if len(slices) == 1 else _concatenate(dict(enumerate(slices)), split)


def _wrong_split(available: dict[str, str], specs: dict[str, str], split: str, reason: str) -> UserError:
    """An error about a value in `data.splits`. If rows can be held out of train instead, it names the keys."""
    missing = [other for other in SPLITS[1:] if other in specs and _is_unknown(specs[other], available)]
    cure = ""
    if split in missing and not _is_unknown(specs["train"], available):
        keys = " and ".join(f"data.splits.{other}" for other in missing)
        sizes = " and ".join(f"data.holdout.{other}" for other in missing)
        cure = f"; to hold rows out of train, set {keys} to null, and {sizes} to 10%"
    return UserError(
        f"params.yaml: data.splits.{split}: {specs[split]} ({reason}); allowed: the data's own splits "
        f"({', '.join(available.values())}), or slices of them such as {next(iter(available), 'train')}[:90%]{cure}"
    )


def _is_unknown(spec: str, available: dict[str, str]) -> bool:
    try:
        _parse_spec(spec, dict.fromkeys(available, 100))
    except ValueError as error:
        return "Unknown split" in str(error)
    except Exception:
        return False
    return False


def _check_read_keys(files: Files, read: Read) -> None:
    """Reject a key of `data.read` that has no effect on the data's format, which all files share."""
    name = next((name for names in files.values() for name in names.values()), "")
    allowed = {"csv": Read.model_fields, "tsv": Read.model_fields, "json": ["encoding"]}.get(_format(name), [])
    for key, value in read:
        if value is not None and key not in allowed:
            raise UserError(
                f"params.yaml: data.read.{key}: has no effect on {_format(name)} files ({name}); "
                f"allowed: null, since it is for csv{' and json' if key == 'encoding' else ''} files"
            )


def _read_split(
    builder: datasets.DatasetBuilder,
    split: str,
    files: dict[str, str],
    scratch: Path,
    folder: Path,
    data: Data,
) -> pa.Table:
    options = data.read.model_dump(include={"sep", "encoding", "quotechar"}, exclude_none=True)
    tables = {}
    for link, name in files.items():
        place, path = f"data: {folder}/{name}", link
        if link.endswith(".zst"):  # the link keeps its name, which `configs` in README.md may name
            path = str(scratch / "decompressed" / Path(link).relative_to(scratch / "files").with_suffix(""))
            decompress_zst(Path(link), Path(path), place)
        if _format(name) in ("csv", "tsv"):
            csv_options = builder.config.pd_read_csv_kwargs | options
            table = read_csv(Path(path), place, csv_options, data.read.names)
            csv_options |= {} if data.read.names is None else {"header": None}
            numbers = number_csv_rows(Path(path), place, csv_options, len(table))
        elif _format(name) == "xlsx":
            table, numbers = read_xlsx(Path(path), place)
        else:
            table = _read_typed(path, place, builder, scratch, data)
            is_json = _format(name) == "json"
            numbers = number_json_rows(Path(path), place, len(table)) if is_json else np.arange(len(table)) + 1
        tables[name] = add_places(_cast_as_declared(table, builder, place, folder), name, numbers)
    table = _concatenate(tables, split)
    declared = (builder.info.splits or {}).get(split)
    if declared is not None and declared.num_examples not in (0, len(table)):
        raise UserError(
            f"data: {folder}: split '{split}' has {len(table):,} rows, but dataset_info in README.md says "
            f"{declared.num_examples:,}; fetch or copy it whole, or correct README.md"
        )
    return table


def _cast_as_declared(table: pa.Table, builder: datasets.DatasetBuilder, place: str, folder: Path) -> pa.Table:
    """Cast the columns to the types that README.md declares for them."""
    features = datasets.Features.from_arrow_schema(table.schema)
    for column, feature in (builder.info.features or {}).items():
        if column in features:
            features[column] = feature
            schema = datasets.Features({column: feature}).arrow_schema
            table = _remove_points(table, column, schema.field(column).type, getattr(feature, "names", None))
            try:
                table_cast(table.select([column]), schema)
            except Exception as error:  # `datasets` and pyarrow raise several kinds
                raise UserError(
                    f"{place}: column '{column}' is not what dataset_info in {folder}/README.md declares, "
                    f"{feature!s:.100} ({first_line(error):.200}); correct one of them"
                ) from error
    return table_cast(table, features.arrow_schema)


def _remove_points(table: pa.Table, column: str, target: pa.DataType, names: Iterable[str] | None) -> pa.Table:
    """Replace 1.0 by 1 in a text column that becomes integers. pandas writes 1.0 if values are missing."""
    kind = table.schema.field(column).type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not is_text or not pa.types.is_integer(target) or any(name.endswith(".0") for name in names or ()):
        return table
    values = pc.replace_substring_regex(table[column], r"^(-?[0-9]+)\.0$", r"\1")
    return table.set_column(table.column_names.index(column), column, values)


def _read_typed(path: str, place: str, builder: datasets.DatasetBuilder, scratch: Path, data: Data) -> pa.Table:
    """Read a json, parquet or arrow file by `datasets`."""
    is_json = _format(path) == "json"
    encoding = data.read.encoding or getattr(builder.config, "encoding", None) or "utf-8"
    if is_json and not is_same_encoding(encoding, "utf-8"):
        check_encoding(Path(path), place, encoding)
    if is_json and builder.config.field is None:
        check_json(Path(path), place, encoding)
    try:
        file_builder = datasets.load_dataset_builder(
            str(scratch / "files"),
            data.subset,
            cache_dir=str(scratch / "cache"),
            data_files={"train": [glob.escape(path)]},
            **({"encoding": encoding} if is_json else {}),
        )
        file_builder.download_and_prepare(verification_mode="no_checks")
        rows = file_builder.as_dataset(split="train", in_memory=True)
        table = rows.data.table.replace_schema_metadata(rows.features.arrow_schema.metadata)
        table.validate(full=True)  # finds text that is not UTF-8 here, not when a later stage reads it
    except Exception as error:  # `datasets` raises a dozen kinds here, plain Exception among them
        if is_json:
            check_encoding(Path(path), place, encoding)
        raise UserError(f"{place}: not readable as a data set ({_reason(error, scratch, place)})") from error
    # polars writes text as string_view. Cast it here, so that no later stage meets this type.
    for i, field in enumerate(table.schema):
        if pa.types.is_string_view(field.type):
            table = table.set_column(i, field.name, table.column(i).cast(pa.large_string()))
    return table


def _concatenate(tables: Mapping[Any, pa.Table], split: str) -> pa.Table:
    """Concatenate the columns that all tables have with a common type. Print which columns are left out."""
    if len(tables) == 1:
        return next(iter(tables.values()))
    features = [datasets.Features.from_arrow_schema(table.schema) for table in tables.values()]
    common, differing = [], []
    for column in dict.fromkeys(column for one in features for column in one):
        lacking = [name for name, one in zip(tables, features, strict=True) if column not in one]
        kinds = [one[column] for one in features if column in one]
        if lacking:
            differing.append(f"{column} (not in {_list_some(lacking)})")
        elif all(kind == kinds[0] for kind in kinds) or _have_common_type(kinds):
            common.append(column)
        else:
            differing.append(f"{column} ({' and '.join(dict.fromkeys(f'{kind!s:.60}' for kind in kinds))})")
    if differing:
        print(f"split '{split}': columns that differ between its files are left out: {', '.join(differing)}")
    table = pa.concat_tables([table.select(common) for table in tables.values()], promote_options="permissive")
    return table.replace_schema_metadata(datasets.Features.from_arrow_schema(table.schema).arrow_schema.metadata)


def _have_common_type(kinds: list) -> bool:
    """Whether pyarrow can concatenate columns of these features, for example integers and floats, or null and text."""
    try:
        pa.unify_schemas([datasets.Features(c=kind).arrow_schema for kind in kinds], promote_options="permissive")
    except pa.ArrowException:
        return False
    return all(isinstance(kind, datasets.Value) for kind in kinds)


def _list_some(names: Iterable[object]) -> str:
    texts = [str(name) for name in names]
    return ", ".join(texts[:3]) + (f" and {len(texts) - 3} more" if len(texts) > 3 else "")


def _reason(error: BaseException, scratch: Path, place: object) -> str:
    """The first line of a library's error, in which the links' folder is replaced by `place`."""
    line = first_line(error.__cause__ or error).partition(" with any supported extension")[0]
    return line.replace(f"{scratch}/files", str(place)).replace(str(scratch), str(place))
