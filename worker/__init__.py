"""Takes jobs from RQ, draws them step by step, stores the pictures. One process per device."""
