"""Benchmarks of tzfs beside what it is compared with: `python -m benchmarks`.

workloads   what is timed, in a client process of its own
peers       what is mounted: tzfs, an empty pyfuse3 filesystem, zfs-fuse, fuse-overlayfs, the local disk
emptyfs     that empty filesystem: the floor of what Python under this pump can do
snapshots   what only tzfs does: snapshot time by size, memory after a walk
report      medians, ratios, tables, JSON
"""
