"""Performs what the machine decides, over ports."""
