"""From sources to shards: reading, filtering, deduplication, tokenisation."""
