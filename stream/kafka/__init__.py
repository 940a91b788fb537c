"""Kafka as this project uses it: clients, topics, consumer lag, dead letters."""
