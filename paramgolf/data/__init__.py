"""From sources of text to token shards: documents, tokenizers, byte counts, shards, windows."""
