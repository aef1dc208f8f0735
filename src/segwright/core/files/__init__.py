"""Files that are written whole or not at all, JSON and zip files read within bounds, file names, locks."""
