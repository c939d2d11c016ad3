"""Jobs on Redis: records, their transitions, submission, listing, events."""
