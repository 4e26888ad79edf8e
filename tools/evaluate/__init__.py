"""Score a run on labelled data that its training never saw: `python -m tools.evaluate`."""

from pathlib import Path

ADAPTER = Path("outs/adapter")  # of the finished run
