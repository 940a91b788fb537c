"""What each stage does with a batch of records."""
