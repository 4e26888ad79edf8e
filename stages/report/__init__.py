"""What people read of a run: report, pictures, model card, comparison page."""
