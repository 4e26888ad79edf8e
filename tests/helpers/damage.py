"""Changes to the files of a saved model, for the tests that have to notice them."""

import json

import safetensors.torch


def edit_json(folder, name, /, **values):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_weights(folder, part, change):
    """Change the first weight with `part` in its name, in a folder's one safetensors file; None leaves it out."""
    (path,) = folder.glob("*.safetensors")
    weights = safetensors.torch.load_file(path)
    name = next(name for name in weights if part in name)
    weights[name] = change(weights[name])
    kept = {name: value.contiguous() for name, value in weights.items() if value is not None}
    safetensors.torch.save_file(kept, path, metadata={"format": "pt"})
