"""Measurements that `make bench` runs; each prints figures and what they were made with."""
