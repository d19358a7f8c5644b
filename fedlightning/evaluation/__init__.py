"""How a model is scored: pooled, and over clients."""
