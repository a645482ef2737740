"""From shards to batches: row i of a run is a function of i."""
