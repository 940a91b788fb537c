"""The whole system on one machine without Docker: real servers as local processes, with all files in one folder."""
