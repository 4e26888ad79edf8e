"""Set where a model or a data set is. `tools.init` and `tools.evaluate` use it."""

from pathlib import Path

from stages.runtime.errors import UserError
from stages.runtime.params import FROM_HUB
from stages.sources import hub
from stages.sources.fetch import choose_folder_value
from tools.init.params_file import Draft


def choose_source(draft: Draft, section: str, given: str) -> None:
    """Set where the model or the data is: a path, or a name on the hub with its present commit."""
    path, on_hub = Path(given), False
    if not path.exists():
        on_hub = hub.NAME.fullmatch(given) is not None
        if not on_hub:
            raise UserError(f"{given}: no such file or folder; allowed: a path, or OWNER/NAME on the Hugging Face hub")
        print(f"{given}: no such path here, so it is read from the hub")
    draft.set(f"{section}.folder", FROM_HUB if on_hub else choose_folder_value(path))
    draft.set(f"{section}.name", given if on_hub else None)
    draft.set(f"{section}.revision", hub.find_present_commit(given, section) if on_hub else None)
    draft.set(f"{section}.digest", None)
