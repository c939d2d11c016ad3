"""Webhooks: jobs' ends told to the addresses that asked for it (Standard Webhooks)."""
