"""Measurements that users run on their own machines: `stream bench`."""
