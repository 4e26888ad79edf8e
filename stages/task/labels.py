"""The classes, in the order of SNLI's codes 0, 1, 2 (-1 is "no gold label"), the columns, and the splits."""

LABELS = ("entailment", "neutral", "contradiction")
PROBABILITIES = [f"p_{name}" for name in LABELS]
TEXTS = ("premise", "hypothesis")
GROUP = "premise"  # rows that share it are not independent
SPLITS = ("train", "validation", "test")
