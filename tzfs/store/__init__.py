"""Where rows and payload lie.  `interface` says what the engine may ask; the rest implement it, on disk and in RAM."""
