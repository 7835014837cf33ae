"""A network like the field's: images by reference, v1 nodes started by the field's manager, its container settings."""
