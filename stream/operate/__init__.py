"""What people do to a running system: publish, delete, replay, redrive, reindex, verify."""
