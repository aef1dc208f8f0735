"""Code that a user brings: component references, which code is trusted, imports from a folder, whose error it is."""
