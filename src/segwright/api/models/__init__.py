"""Models from elsewhere: import, export, install, and find them by name."""
