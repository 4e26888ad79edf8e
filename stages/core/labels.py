"""The classes, in the order of SNLI's codes 0, 1, 2 (-1 is «no gold label»), and the splits."""

LABELS = ("entailment", "neutral", "contradiction")
SPLITS = ("train", "validation", "test")
