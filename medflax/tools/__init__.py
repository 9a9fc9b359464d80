"""Commands beside the main job, each run as `python -m medflax.tools.NAME`."""
