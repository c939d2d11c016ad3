"""Faults under load, and what must be true after them: `make soak`; a short one as a test."""
