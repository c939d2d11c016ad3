"""Imported once by the process that worker processes are forked from: the slow imports."""

import worker.start  # noqa: F401
from models.clip_library import open_clip

open_clip(whole=False)
