"""What a person looks at: pictures of predictions, later the page of a whole run."""
