"""Stage `download`: fetch model and data, from the hub or a folder, at pinned revisions, and check them."""

import textwrap

import pyarrow as pa
import pyarrow.parquet as pq

from stages.data.row_places import list_columns
from stages.data.split_files import read_splits
from stages.data.task import SPLITS
from stages.runtime import errors, files, gpu_selection, params
from stages.sources.fetch import fetch


def main() -> None:
    p = params.load()
    warn_without_gpu(p.device)
    data_folder, data_manifest = fetch(p.data, "data")
    # Fails before the model, which may take an hour
    splits = read_splits(data_folder, data_manifest["files"], p.data, with_places=True)
    _, model_manifest = fetch(p.model, "model")

    with files.atomic_folder("outs/splits") as folder:
        for split, rows in splits.items():
            pq.write_table(rows, folder / f"{split}.parquet")
    files.write_json("outs/data_source.json", {key: data_manifest[key] for key in ("name", "revision", "digest")})
    files.write_json("outs/base_model.json", model_manifest)

    gigabytes = sum(file["size"] for file in model_manifest["files"].values()) / 1e9
    print(f"{model_manifest['name']}: {gigabytes:.2g} GB; {data_manifest['name']}: {describe_rows(splits)}")
    print("\n".join(describe_columns(splits)))


def describe_rows(splits: dict[str, pa.Table]) -> str:
    """The number of rows that were read for each split, and which are held out by `tokenize`."""
    counts = ", ".join(f"{len(rows):,} {split}" for split, rows in splits.items())
    held_out = " and ".join(split for split in SPLITS if split not in splits)
    return f"{counts}; `tokenize` holds out the {held_out} rows" if held_out else counts


def describe_columns(splits: dict[str, pa.Table]) -> list[str]:
    """A line with the columns that were read; a line for each split if they have different ones."""
    names = {split: textwrap.shorten(", ".join(list_columns(rows)), 500) for split, rows in splits.items()}
    if len(set(names.values())) == 1:
        return [f"columns: {names['train']}"]
    return [f"columns of {split}: {columns}" for split, columns in names.items()]


def warn_without_gpu(device: str) -> None:
    """Warn that later stages need a GPU. No error: the login node of a cluster may download for other machines."""
    if device == "cuda" and not gpu_selection.list_visible_gpus():
        print(
            "params.yaml: device: cuda, but CUDA shows no GPU on this machine: eval_base will stop here, after the "
            "download; `make demo` runs the same pipeline on a CPU",
            flush=True,
        )


if __name__ == "__main__":
    errors.run(main)
