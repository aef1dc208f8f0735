"""Results of the verbs, pictures of predictions, and the HTML report of a run."""
