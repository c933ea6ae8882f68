"""Checking a whole filesystem: everything that FORMAT.md says always holds at a commit, tested from the rows.

    run        the passes one after the other, as one stream of problems and progress
    problems   what a problem is, and the rules there are
    forms      what one key, inode or list of slices must look like
    tables     the small tables: superblock, counters, snapshots, what waits to be done
    versions   the invariant of versions; `change`, `dead`; cells counted again
    sight      what each view, a snapshot or the head, sees of a key
    names      inodes, entries, links, directories, orphans, attributes: by inode number
    contents   inline rows and chunks, and the inodes they hang on: by data id
    extents    the lifetimes of extents, as versions name them; payload against its sums
    space      extents against each other, the segments, and what waits to be punched

All reads go through one read transaction, so a check sees one commit.  Nothing is repaired.  What is damaged is
reported and passed over; what hangs on it is judged as far as it can be.

Each table is read in key order, once or twice; look-ups go from entries to inodes, from data ids to inodes, and from
the deadlist to versions.  Memory: about 60 bytes a data id, 200 a directory, 300 an extent lifetime, whatever the
number of snapshots; only a table whose rows are found not to match is read a third time, with all its keys in memory.
"""
