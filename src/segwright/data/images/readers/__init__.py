"""Readers and writers of image files, one module per family; headers are checked before a library opens a file."""
