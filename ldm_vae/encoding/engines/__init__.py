"""Who encodes which shard: other machines than this one."""
