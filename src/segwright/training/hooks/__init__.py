"""The trainer's hooks: what a subclass may declare, and what its hooks must return."""
