"""Every error this package raises on purpose, each a sentence for the person who reads it."""


class ModelError(Exception):
    """Something about a model, its files or its inputs is wrong."""


class BundleError(ModelError):
    """A bundle folder is missing, damaged, mismatched or too new; the message names the file."""


class ContextError(ModelError):
    """CLIP could not be loaded or a prompt could not be embedded."""


class ScheduleError(ModelError, ValueError):
    """A noise schedule, spacing, sampler or step count that does not exist or does not fit."""


class DatasetError(ModelError):
    """A training folder is empty, unreadable, or its captions are missing."""
