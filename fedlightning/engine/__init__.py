"""How local steps are taken: plans, executors, slots and their threads, and evaluation."""
