"""What is shown to people: report, pictures, model card."""
