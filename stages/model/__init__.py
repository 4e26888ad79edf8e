"""The classifier: quantised base, head, adapter, prediction."""
