"""The data: files of the splits, label column, rows, tokens and batches."""
