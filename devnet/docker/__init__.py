"""Containers for trials: a Docker engine of our own, a base image made from Debian's packages, the compose trial."""
