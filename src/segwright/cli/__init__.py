"""The command line: one thin command per verb that parses, calls `segwright.api` and prints; reads the environment."""
