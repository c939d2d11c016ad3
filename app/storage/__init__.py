"""Where images lie; shared by API and workers."""
