"""What answers which path; only `app.main` imports these."""
