"""Several processes that share a world: who holds which node, and how messages travel between processes."""
