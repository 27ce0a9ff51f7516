"""FAISS: building, searching and storing indexes of embeddings, and recall. numpy in, numpy out.

    exact       inner products that come out the same in any block, library and thread
    hits        what a search finds, and what whatever is searched has in common
    rescoring   exact scores of some candidates: how every search ends
    maxsim      exact search where a picture is Q vectors, grouped by picture
    kinds       hnsw, ivf, ivfpq: which for how many vectors, and what they take
    proposer    FAISS's part of an approximate index
    approximate search by candidates of a proposer, scored exactly
    merging     fewer vectors for a picture
    tuning      how widely to look for a recall, and the recall that is reached
    sharded     several index shards searched as one
    known       pictures that an index has, which an addition leaves out
    sources     the datasets an index is made of, and how
    gathering   what an index shard holds of them, as files
    filling     a proposer trained and filled in steps that survive a kill
    faiss_files a proposer as a file
    threads     how many cores FAISS computes with
    storage     an index as a folder; index.json, published last
    building    an index, shard by shard
    parts       an index with its additions
    adding      an addition: what is new in it, and how it comes to be seen
    retrieval   an index opened for search
    ranking     where right items rank among all, block by block, and which items rank first
    recall      recall at k and median rank between pictures and captions; chance
    intervals   95% intervals, bootstrapped over pictures

Shapes are written in one legend: N pictures, M captions, Q vectors a picture, A vectors an item of
an index (Q for pictures, 1 for captions), E values a vector. All vectors are L2-normalised.
"""

import logging

logging.getLogger("faiss.loader").setLevel(logging.WARNING)  # else seven lines at every start
