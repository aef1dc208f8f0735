"""The ground floor: errors, documents, geometry, counted randomness, threads. Knows nothing of images or networks."""
