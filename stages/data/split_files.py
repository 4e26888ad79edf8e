"""The three splits of a data set, read from its files as they are."""

import glob
import logging
import re
from collections.abc import Iterable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from datasets.data_files import DataFilesDict, get_data_patterns
from datasets.table import table_cast
from huggingface_hub import DatasetCard

from stages.data.csv_and_json import check_encoding, check_json, read_csv
from stages.data.task import SPLITS
from stages.runtime.errors import UserError, first_line
from stages.runtime.files import temporary_folder
from stages.runtime.params import Data
from stages.sources.manifest import TABLE_EXTENSIONS

KINDS = {"jsonl": "json", "ndjson": "json"}  # endings that mean the same kind of table as another
STATE = "state.json"  # `save_to_disk` writes it next to its arrow files
READ_AS = {"tsv": "csv"}  # the reader of a kind, if it has another name


def read_splits(folder: Path, names: Iterable[str], data: Data) -> dict[str, pa.Table]:
    """Read the splits of a folder, and print which files each one is read from.

    `datasets` says which files belong to a split, and reads them, but for csv and tsv: their cells are read as text.
    Only the named files are read, those that the manifest pins, and never out of the cache of `datasets`: it takes a
    file of the same path and time for the same rows.

    Args:
        names: files, relative to `folder`.
        data: the group `data` of params.yaml: `subset` and `splits`, names or slices in the notation of `datasets`.

    Returns:
        {split: arrow table}, with the columns that all files of a split have; its schema carries what `datasets` knows
        of the columns, the names of classes above all.

    Raises:
        UserError: naming the file or the key: no table, not readable, no such subset, no such split, an empty slice.
    """
    names = list(names)
    saved = {Path(name).with_name(STATE) for name in names if _kind(name) == "arrow"}
    names = [name for name in names if Path(name) not in saved]
    if not any(_kind(name) for name in names):
        raise UserError(f"data.name: {folder}: no table here; allowed: *.{', *.'.join(TABLE_EXTENSIONS)}")
    with temporary_folder("outs/data_source") as scratch:
        scratch = scratch.resolve()
        links = _link(folder, names, scratch / "files")
        datasets.disable_progress_bars()  # seconds even for SNLI, and they would stay in every log
        configs = _configs(folder, scratch)
        if not configs:
            _check_kinds(_files(_found(scratch / "files"), links, folder), folder)
        builder = _builder(scratch, folder, data.subset, configs)
        # `datasets` itself leaves out the files of all kinds but the most frequent one
        files = _files(builder.config.data_files if configs else _found(scratch / "files"), links, folder)
        _check_kinds(files, folder, builder)
        wanted = {split: _own_splits(files, split, getattr(data.splits, split)) for split in SPLITS}
        datasets.logging.set_verbosity(logging.CRITICAL)  # it would log each error, and name the links
        rows = {own: _read_split(builder, own, files[own], scratch, folder, data.subset) for own in files
                if any(own in owns for owns in wanted.values())}  # fmt: skip
        found = {split: _slice(rows, files, split, getattr(data.splits, split)) for split in SPLITS}
    print("; ".join(f"{split} from {_few(name for own in owns for name in files[own].values())}"
                    for split, owns in wanted.items()))  # fmt: skip
    return found


def _ending(name):
    """The ending that makes a file a table, in lower case; empty for another file."""
    return next((ending for ending in TABLE_EXTENSIONS if name.lower().endswith(f".{ending}")), "")


def _kind(name):
    """Kind of a table by its file's name: csv, tsv, json, parquet, arrow; empty for another file."""
    ending = _ending(name).partition(".")[0]
    return KINDS.get(ending, ending)


def _link(folder, names, place):
    """Links to the named files, under names whose ending is in lower case as `datasets` wants it -> {link: name}."""
    links = {}
    for name in names:
        link = place / (name[: len(name) - len(_ending(name))] + _ending(name))
        if str(link) in links:
            raise UserError(f"data.name: {folder}: {links[str(link)]} and {name} differ only in case; rename one")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to((Path(folder) / name).resolve())
        links[str(link)] = name
    return links


def _configs(folder, scratch):
    """The entries of `configs` in the folder's README.md, by which `datasets` chooses files."""
    card = scratch / "files" / "README.md"
    if not card.exists():
        return []
    try:
        configs = DatasetCard.load(card).data.get("configs") or []
    except Exception as error:  # not UTF-8, not YAML, not the metadata of a data set
        mark = getattr(error, "problem_mark", None)  # counts from 0, and leaves out the first line, ---
        where = f"line {mark.line + 2}: {error.problem}" if mark else first_line(error)
        raise UserError(f"{folder}/README.md: its head is not readable as YAML ({where}); put it right") from error
    named = [(one.get("data_files"), one.get("data_dir")) for one in configs if isinstance(one, dict)]
    for address in re.findall(r"\w+://[^\s'\"]+", str(named)):  # before `datasets` asks the network for it
        raise _not_pinned(folder, address)
    return configs


def _not_pinned(folder, path):
    return UserError(f"{folder}/README.md: configs: {path} is not one of the tables in {folder}; name only those")


def _builder(scratch, folder, subset, configs):
    try:
        return datasets.load_dataset_builder(str(scratch / "files"), subset, cache_dir=str(scratch / "cache"))
    except Exception as error:
        try:
            has = datasets.get_dataset_config_names(str(scratch / "files"))
        except Exception:  # not a matter of subsets
            has = []
        if not isinstance(error, ValueError) or (subset is None and len(has) < 2) or subset in has:
            reason = _reason(error, scratch, folder)
            where = f"{folder}/README.md: configs" if configs else f"data.name: {folder}"
            raise UserError(f"{where}: not readable as a data set ({reason})") from error
        allowed = "null, since it has no subsets" if has == ["default"] else ", ".join(has)
        raise UserError(
            f"params.yaml: data.subset: {'null' if subset is None else subset}; allowed with {folder}: {allowed}"
        ) from error


def _found(place):
    """{split of the data set: files}, by their names."""
    return DataFilesDict.from_patterns(get_data_patterns(str(place)), base_path=str(place))


def _files(found, links, folder):
    """{split of the data set: {link: name of the file}}: all in the manifest."""
    files = {}
    for split, paths in found.items():
        for path in map(str, paths):
            if not _kind(links.get(path, "")):
                raise _not_pinned(folder, links.get(path, path))
            files.setdefault(str(split), {})[path] = links[path]
    return files


def _check_kinds(files, folder, builder=None):
    """Refuse tables of several kinds, or of a kind that a builder does not read."""
    kinds = {}
    for names in files.values():
        for name in names.values():
            kinds.setdefault(_kind(name), []).append(name)
    if len(kinds) > 1:
        listed = ", ".join(f"{kind} ({_few(names)})" for kind, names in sorted(kinds.items()))
        raise UserError(
            f"data.name: {folder}: tables of {len(kinds)} kinds: {listed}; keep one kind there, "
            "or name the files of each split in its README.md, under `configs`"
        )
    if files and builder and builder.name not in (kind := next(iter(kinds)), READ_AS.get(kind)):
        raise UserError(
            f"{folder}/README.md: configs: {_few(files[next(iter(files))].values())} would be read as {builder.name}, "
            "as `datasets` reads the files of the first config; keep tables of one kind in the folder"
        )


def _own_splits(files, split, wanted):
    """The splits of the data set that a slice is made of."""
    try:
        instruction = datasets.ReadInstruction.from_spec(wanted)
        return list(dict.fromkeys(part.splitname for part in instruction.to_absolute(dict.fromkeys(files, 100))))
    except Exception as error:  # no such split, a percentage over 100
        raise _no_split(files, split, wanted, first_line(error)) from error


def _slice(rows, files, split, wanted):
    try:
        parts = datasets.ReadInstruction.from_spec(wanted).to_absolute({own: len(rows.get(own, ())) for own in files})
    except Exception as error:  # pct1_dropremainder of less than 100 rows
        raise _no_split(files, split, wanted, first_line(error)) from error
    tables = [rows[part.splitname].slice(part.from_, max(part.to - part.from_, 0)) for part in parts]
    if not any(map(len, tables)):
        raise _no_split(files, split, wanted, "it has no data")
    return tables[0] if len(tables) == 1 else _join(dict(enumerate(tables)), split)


def _no_split(files, split, wanted, reason):
    return UserError(
        f"params.yaml: data.splits.{split}: {wanted} ({reason}); "
        f"allowed: the data's own splits ({', '.join(files)}), or slices of them such as {next(iter(files))}[:90%]"
    )


def _read_split(builder, split, files, scratch, folder, subset):
    tables = {}
    for link, name in files.items():
        where = f"data.name: {folder}/{name}"
        if _kind(name) in ("csv", "tsv"):
            table = read_csv(link, where, builder.config.pd_read_csv_kwargs)
        else:
            table = _read_typed(link, where, builder, scratch, subset)
        tables[name] = _as_declared(table, builder, where, folder)
    table = _join(tables, split)
    declared = (builder.info.splits or {}).get(split)
    if declared is not None and declared.num_examples not in (0, len(table)):
        raise UserError(
            f"data.name: {folder}: split '{split}' has {len(table):,} rows, but dataset_info in README.md says "
            f"{declared.num_examples:,}; fetch or copy it whole, or correct README.md"
        )
    return table


def _as_declared(table, builder, where, folder):
    """A table with the types that README.md declares for its columns, if it does."""
    features = datasets.Features.from_arrow_schema(table.schema)
    for column, feature in (builder.info.features or {}).items():
        if column in features:
            features[column] = feature
            wanted = datasets.Features({column: feature}).arrow_schema
            table = _without_points(table, column, wanted.field(column).type, getattr(feature, "names", None))
            try:
                table_cast(table.select([column]), wanted)
            except Exception as error:  # `datasets` and pyarrow raise several kinds
                raise UserError(
                    f"{where}: column '{column}' is not what dataset_info in {folder}/README.md declares, "
                    f"{feature!s:.100} ({first_line(error):.200}); correct one of them"
                ) from error
    return table_cast(table, features.arrow_schema)


def _without_points(table, column, wanted, names):
    """A table whose column of text has 1 for 1.0, which pandas writes for 1 next to gaps, if integers are wanted."""
    kind = table.schema.field(column).type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not text or not pa.types.is_integer(wanted) or any(name.endswith(".0") for name in names or ()):
        return table
    values = pc.replace_substring_regex(table[column], r"^(-?[0-9]+)\.0$", r"\1")
    return table.set_column(table.column_names.index(column), column, values)


def _read_typed(path, where, builder, scratch, subset):
    """A json, parquet or arrow file, read by `datasets`."""
    text = _kind(path) == "json"
    if text and builder.config.field is None:
        check_json(path, where)
    try:
        one = datasets.load_dataset_builder(
            str(scratch / "files"), subset, cache_dir=str(scratch / "cache"), data_files={"train": [glob.escape(path)]}
        )
        one.download_and_prepare(verification_mode="no_checks")
        rows = one.as_dataset(split="train", in_memory=True)
        table = rows.data.table.replace_schema_metadata(rows.features.arrow_schema.metadata)
        table.validate(full=True)  # text that is not UTF-8 is found here, not where a later stage reads it
    except Exception as error:  # `datasets` raises a dozen kinds here, plain Exception among them
        if text:
            check_encoding(path, where, builder.config.encoding)
        raise UserError(f"{where}: not readable as a data set ({_reason(error, scratch, where)})") from error
    views = [i for i, field in enumerate(table.schema) if pa.types.is_string_view(field.type)]
    for i in views:  # as polars writes text; no later stage needs to know that there is another kind of text
        table = table.set_column(i, table.schema.names[i], table.column(i).cast(pa.large_string()))
    return table


def _join(tables, split):
    """One table of several, with the columns that all of them have, and of one type; says which it leaves out."""
    if len(tables) == 1:
        return next(iter(tables.values()))
    features = [datasets.Features.from_arrow_schema(table.schema) for table in tables.values()]
    kept, differing = [], []
    for column in dict.fromkeys(column for one in features for column in one):
        lacking = [name for name, one in zip(tables, features, strict=True) if column not in one]
        kinds = [one[column] for one in features if column in one]
        if lacking:
            differing.append(f"{column} (not in {_few(lacking)})")
        elif all(kind == kinds[0] for kind in kinds) or _of_one_type(kinds):
            kept.append(column)
        else:
            differing.append(f"{column} ({' and '.join(dict.fromkeys(f'{kind!s:.60}' for kind in kinds))})")
    if differing:
        print(f"split '{split}': columns that differ between its files are left out: {', '.join(differing)}")
    joined = pa.concat_tables([table.select(kept) for table in tables.values()], promote_options="permissive")
    return joined.replace_schema_metadata(datasets.Features.from_arrow_schema(joined.schema).arrow_schema.metadata)


def _of_one_type(kinds):
    """Whether pyarrow joins columns of these features: integers and floats, for example, or null and text."""
    try:
        pa.unify_schemas([datasets.Features(c=kind).arrow_schema for kind in kinds], promote_options="permissive")
    except pa.ArrowException:
        return False
    return all(isinstance(kind, datasets.Value) for kind in kinds)


def _few(names):
    names = [str(name) for name in names]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _reason(error, scratch, folder):
    """The first line of a library's error, with the folder's name for that of the links to it."""
    line = first_line(error.__cause__ or error).partition(" with any supported extension")[0]
    return line.replace(f"{scratch}/files", str(folder)).replace(str(scratch), str(folder))
