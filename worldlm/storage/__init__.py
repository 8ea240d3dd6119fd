"""Where nodes are kept while they wait: in memory, on disk, or on the device that trains them."""
