"""The drivers of a TEE behind one narrow protocol: Gramine, and the client of the simulated CPU."""
