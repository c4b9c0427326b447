"""Backward-compatible training: the task, its methods and the frozen old model."""
