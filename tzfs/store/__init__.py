"""Where a filesystem's rows and payload lie.  `interface` says what the engine may ask; the rest are implementations."""
