"""Measurements that a user runs on a machine of their own: `stream bench`."""
