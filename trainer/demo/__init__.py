"""The demo: two shards, a serving follower and a trainer as real processes, watched for a minute from outside."""
