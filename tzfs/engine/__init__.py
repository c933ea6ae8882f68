"""The engine: versions, transaction groups, namespace, contents, snapshots of one filesystem.  No FUSE, no event loop.

`engine.Engine` is the writer's face, `view.View` a snapshot reader's; the other modules are their parts.
"""
