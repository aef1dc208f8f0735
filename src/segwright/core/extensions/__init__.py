"""The user's own code: component references, which code may be imported, imports from a folder, errors in it."""
