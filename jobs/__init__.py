"""Processes: the command line, Ray, and the jobs that carry a dataset from one folder to the next.

cli         the command `viaduct`: one subcommand a job
cluster     the Ray session a job runs in: its own, or a cluster's
shards      the runner: a pool of actors, a deadline and finite attempts a shard
progress    done, total, rate, time left
build       a dataset filled shard by shard: resume, set aside, publish, run.json
ingest, curate, features    the jobs
inspect     what is in a dataset, and whether it is whole
"""
