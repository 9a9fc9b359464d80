"""Meshes and shardings: how arrays are laid out over devices."""
