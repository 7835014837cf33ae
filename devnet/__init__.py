"""Development network: chain, reference node, releases, and a whole world of them for trials. Nobody imports it."""
