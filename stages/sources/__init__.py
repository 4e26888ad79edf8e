"""Models and data: fetch them from the Hugging Face hub or from a folder, at a pinned revision, and check them."""
