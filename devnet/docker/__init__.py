"""Containers for trials: a private Docker engine, a base image from Debian's packages, the compose trial."""
