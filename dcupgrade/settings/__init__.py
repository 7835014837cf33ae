"""The settings file: schema, loading, checks, derived values, reference page."""
