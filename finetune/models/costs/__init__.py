"""Costs of networks: multiply-adds, memory of layers, throughput."""
