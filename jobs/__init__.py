"""Processes: the command line, Ray, and the jobs that carry a dataset from one folder to the next.

cli         the command `viaduct`: one subcommand a job
settings    a job's options as flat names and values: what config.yaml holds
recipes     such settings by name: the paper's and the demo's
cluster     the Ray session a job runs in: its own, or a cluster's
shards      the runner: a pool of actors, a deadline and finite attempts a shard
progress    done, total, rate, time left
prometheus  what Prometheus sees of running jobs, through Ray
build       a dataset filled shard by shard: resume, set aside, publish
run_log     run.json, written and read
metric_lines    names of a training's files; metrics.jsonl, read
training    the loop of both stages, on Ray Train: ranks, updates, checkpoints, metrics
malloc      how a CPU's memory is kept between steps
compute     how workers put a trained model to work
device      where a command computes that needs no cluster
results     what it found, as one JSON file
ingest, curate, features, train_stage1, train_stage2, embed, index    the jobs, as data flows
import_weights, export_weights    checkpoints from LAVIS and transformers, and to them
evaluate    what a trained model is worth: retrieval, captions, published sets
search, caption, answer    what it can do
search_queries, search_models    queries of all kinds, and the models that answer them
search_places, search_output    what an index was made of; how what was found is told
serve       searches over HTTP, with a page
capfilt     captions that stage 1 writes, scored beside the web's
caption_roles     who may write captions and who may judge them
caption_worker    its worker: writing, cleaning and judging a shard
feature_worker    the worker of features: encoder, decoding and writing side by side
subjects    what it looks at then: picture files, or rows of features
texts       what it writes of them: asked for with progress, printed, published
plan        what a run will read, write and take, before it is begun
status      how far a job is, how fast, and what failed why
standing    that, of each dataset, index and training, from its records
inspect     what is in a dataset, and whether it is whole
wording     numbers and times as people read them
report      one page of all that a run made
demo        all of it, on a procedural web
"""
