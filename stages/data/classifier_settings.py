"""classifier.json in an adapter's folder: what a prediction needs to know of the run.

It is not in stages/model, whose import takes 10 s: `tools.predict` checks a user's files first.
"""

from pathlib import Path

from stages.data.labels import Labels, make_labels
from stages.runtime import files, params


class ClassifierSettings(params.Section):
    """classifier.json: the classes, and the parameters that a prediction needs."""

    classes: params.Classes
    multi_label: bool = False
    seed: params.Seed
    template: params.Template
    max_length: params.MaxLength
    model: params.ModelSettings
    batches: params.Batches

    @property
    def labels(self) -> Labels:
        """The classes, and how many of them a row may have."""
        return make_labels(self.classes, self.multi_label)


def read_settings(adapter: Path) -> ClassifierSettings:
    """Read classifier.json of an adapter's folder.

    Raises:
        UserError: names the file, and each key that is missing, unknown or of another type.
    """
    path = adapter / "classifier.json"
    return params.validate(files.read_json(path), ClassifierSettings, path)
