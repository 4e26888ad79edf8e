"""Score a run on labelled data that its training never saw: `python -m tools.evaluate`."""
