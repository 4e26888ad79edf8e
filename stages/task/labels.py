"""The classes, in the order of SNLI's codes 0, 1, 2 (-1 is «no gold label»), their columns, and the splits."""

LABELS = ("entailment", "neutral", "contradiction")
PROBABILITIES = [f"p_{name}" for name in LABELS]
SPLITS = ("train", "validation", "test")
