"""Other projects' programs and configurations, read or replayed."""
