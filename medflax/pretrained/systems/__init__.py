"""Published systems: the sections and tables of checkpoints that hold more than one part."""
