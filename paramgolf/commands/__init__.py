"""The commands of `paramgolf`, a module each, with `configure(parser)` and `run(options)`."""
