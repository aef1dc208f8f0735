"""What a training reports: logs, loggers, status, plots and warnings."""
