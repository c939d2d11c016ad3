"""Imported once by the process that worker processes are forked from: the slow imports."""

from models.torchvision_ops import declare_missing_operators

declare_missing_operators()

import open_clip  # noqa: E402, F401

import worker.start  # noqa: E402, F401
