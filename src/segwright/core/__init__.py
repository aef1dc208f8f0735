"""Errors, files, random generators, threads and memory: what every other folder uses; nothing of images or networks."""
