"""Development network for trials: chain, reference node, releases, and all of them together. No package imports it."""
