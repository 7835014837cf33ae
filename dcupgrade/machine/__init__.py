"""PURE. What is decided: states, events, guards, actions, the transition table, gates and plan."""
