"""What federated training is compared with."""
