"""Every figure that a document quotes, one command each: ``hatch run bench NAME``."""
