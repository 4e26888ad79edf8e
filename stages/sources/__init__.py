"""Where models and data come from: the hub or a folder, pinned and checked."""
