"""Avocat's HTTP service: validates, admits, enqueues, answers; knows no tensors."""

__all__ = ["__version__"]

__version__ = "0.1.0"
