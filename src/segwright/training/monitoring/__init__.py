"""Monitoring of a training: logs, metric loggers, status, plots and warnings."""
