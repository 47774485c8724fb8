"""Where text comes from: files, the hub of published data, the embedded sample."""
