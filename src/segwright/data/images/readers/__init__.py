"""Readers and writers of image files, one module for each family; headers are checked before a library sees a file."""
