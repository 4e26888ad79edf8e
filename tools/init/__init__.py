"""`python -m tools.init`: from a file, a folder or a data set on the hub to the keys of params.yaml."""
