"""Stage `download`: model and data, from the hub or a folder, at a pinned revision."""

import pyarrow.parquet as pq

from stages.data.split_files import read_splits
from stages.runtime import errors, files, gpu_selection, params
from stages.sources.fetch import fetch


def main() -> None:
    p = params.load()
    if (
        p.device == "cuda" and not gpu_selection.list_visible_gpus()
    ):  # no error: a cluster's login node may download for others
        print("params.yaml: device: cuda, but CUDA shows no GPU on this machine: eval_base will stop here, after the "
              "download; `make demo` runs the same pipeline at CPU size", flush=True)  # fmt: skip
    data_folder, source = fetch(p.data, "data", p.watch.data)
    splits = read_splits(data_folder, source["files"], p.data)  # before the model, which may take an hour to fetch
    _, manifest = fetch(p.model, "model", p.watch.model)
    with files.atomic_folder("outs/splits") as folder:
        for split, rows in splits.items():
            pq.write_table(rows, folder / f"{split}.parquet")
    files.write_json("outs/data_source.json", {key: source[key] for key in ("name", "revision", "digest")})
    files.write_json("outs/base_model.json", manifest)
    print(f"{manifest['name']}: {sum(f['size'] for f in manifest['files'].values()) / 1e9:.2g} GB; {p.data.name}: "
          + ", ".join(f"{len(rows):,} {split}" for split, rows in splits.items()))  # fmt: skip


if __name__ == "__main__":
    errors.run(main)
