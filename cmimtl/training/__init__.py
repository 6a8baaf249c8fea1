"""Training: from a data set on disk to a run's folder with a model."""
