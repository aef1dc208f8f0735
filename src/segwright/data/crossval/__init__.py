"""Cross-validation folds: their file, groups of cases that share a fold, and how groups are dealt to folds."""
