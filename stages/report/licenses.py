"""The hub's identifiers of licences, for the key `license` of a card: the hub rejects a card with any other."""

from pathlib import Path

# From huggingface/hub-docs, docs/hub/repositories-licenses.md, August 2026. huggingface_hub has no such list.
LICENSES = frozenset(Path(__file__).with_name("licenses.txt").read_text().split())
