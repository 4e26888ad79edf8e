"""Train several times in one folder, and print the digests of adapter and losses as JSON.

    python benchmarks/repeat_training.py FOLDER --what "the demo with device: cuda" --times 2

FOLDER holds a params.yaml, and the outs of `download` and `tokenize`.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from stages.runtime.files import sha256

OUTS = {"adapter": "outs/adapter/adapter_model.safetensors", "steps": "outs/results/train/steps.csv"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--what", required=True, help="describes the model and the parameters")
    parser.add_argument("--times", type=int, default=2)
    arguments = parser.parse_args()
    runs = []
    for _ in range(arguments.times):
        subprocess.run(
            [sys.executable, "-m", "stages.train_qlora"], cwd=arguments.folder, check=True, stdout=sys.stderr
        )
        measured = json.loads((arguments.folder / "outs/measurements/train/run.json").read_text())
        digests = {f"{name}_sha256": sha256(arguments.folder / path) for name, path in OUTS.items()}
        runs.append({"what": arguments.what, "seconds": round(measured["seconds"], 2), **digests})
    about = {"gpu": measured["gpu"]["name"], "versions": measured["versions"]}
    print(json.dumps(about | {"command": f"python {' '.join(sys.argv)}", "runs": runs}, indent=2))


if __name__ == "__main__":
    main()
