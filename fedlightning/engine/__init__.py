"""The only local training loop, its executors, and evaluation."""
