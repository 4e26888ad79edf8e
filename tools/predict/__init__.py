"""`python -m tools.predict`: predict the class of a text, of rows from standard input, or of the rows of files."""
