"""PNG sheets of label maps over their images, many cases on each."""
