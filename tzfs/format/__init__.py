"""The format at rest: keys, records, checksums.  Bytes in, values out; no I/O.  `FORMAT.md` specifies every byte."""
