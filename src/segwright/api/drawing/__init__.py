"""Pictures of datasets, predictions and augmented samples."""
