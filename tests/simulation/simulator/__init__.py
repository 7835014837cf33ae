"""A seeded simulator: the real orchestrator, machine, journal codec and vault decisions in a simulated world.

Simulated: clocks, disk, processes, network, chain, and the cryptography, which is cheap and named as such. Real: the
orchestrator and its performers, the machine, the journal's codec, keyvault.vault.decisions and its facts, the chain
watcher's verification of releases, the gates.
"""
