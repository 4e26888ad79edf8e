"""What is learnt: classes, rows, tokens, batches."""
