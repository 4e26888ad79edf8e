"""What the stages share: parameters, data, model, training, evaluation, measuring, analysis."""
