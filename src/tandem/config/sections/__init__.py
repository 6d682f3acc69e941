"""Every knob of a run. A field is a flag: its name, default, type, and help below it."""
