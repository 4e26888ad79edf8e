"""What tuning was worth: pure functions of the two models' predictions. No file is read here."""
