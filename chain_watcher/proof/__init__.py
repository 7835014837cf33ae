"""PURE. Bytes of the chain in, verified values out: SCALE, trie, headers, GRANDPA, layout, releases, evidence."""
