"""The mount: kernel requests to engine calls, the daemon, its control socket.  trio and pyfuse3 exist only here."""
