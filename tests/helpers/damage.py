"""Change the files of a saved model, for tests that have to detect the change."""

import json

import safetensors.torch


def edit_json(folder, name, /, **values):
    """Set keys of a JSON file."""
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_weights(folder, part, change):
    """Apply `change` to the first tensor with `part` in its name, in the folder's safetensors file. None removes it."""
    (path,) = folder.glob("*.safetensors")
    weights = safetensors.torch.load_file(path)
    name = next(name for name in weights if part in name)
    weights[name] = change(weights[name])
    remaining = {name: value.contiguous() for name, value in weights.items() if value is not None}
    safetensors.torch.save_file(remaining, path, metadata={"format": "pt"})
