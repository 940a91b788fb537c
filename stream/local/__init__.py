"""The whole system on one machine without docker: real servers as local processes, under one folder."""
