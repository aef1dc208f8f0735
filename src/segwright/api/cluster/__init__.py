"""Run the steps of a run as tasks in any process or on any machine that shares the folders."""
