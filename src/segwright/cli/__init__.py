"""The command line: each command parses its arguments, calls `segwright.api` and prints the result."""
