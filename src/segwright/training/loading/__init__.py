"""From preprocessed cases to batches: caching, sampling, targets and prefetching."""
