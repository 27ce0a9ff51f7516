"""The picture and its captions, from the source to the training batch.

Plain functions on Arrow tables and small classes with their configuration; nothing here knows of
Ray, of an encoder or of a tokeniser, and torch is in the loader alone. In the order in which the
data flows:

    sources     what a location holds, as pairs in a fixed order
    source_files, source_rows   the files that a location names; their cells as pairs
    table_files, extra  cells of tables in all formats; further columns, carried along
    url_tables, annotations, picture_folders    the kinds of source
    picture_tables, tars    pictures that lie in a table or a tar
    retry       what failed in an earlier raw, as a source
    guard       which addresses a worker may reach
    proxies     the way through a proxy, where one was asked for
    deadlines   how long peers may keep a thread, and a shard's peers its worker
    turns       which row a free thread fetches, and how many ask one host at once
    manners     what servers may ask of a worker: waits, opt-outs
    fetch       the one place where bytes enter a worker
    pictures, picture_bounds   bytes to an upright, opaque sRGB JPEG; what is not decoded
    colours     whatever a file's pixels are, as opaque 8-bit sRGB
    download    one slice of a source: img2dataset's Downloader around the last two
    captions    a caption's text, source and status
    near_duplicates    pairs and clusters of pictures that are alike, from columns of hashes
    filters, picture_filters, caption_filters, languages   what pictures and captions have to be
    hashes, plan, recurring, curate     the phases of curate
    features    pictures to the encoder, image tokens as fixed-shape tensors, written
    token_codes how they are stored: fp16, bf16, int8 with scales
    shuffle     a shuffle of any size, computed place by place
    order, lanes    which pictures a step trains on, and all that is drawn by chance
    views       cached views of the same pictures, and which a picture shows in an epoch
    token_reader    image tokens out of feature shards, a row copied once
    mix         the order of several datasets, each with its share of a batch
    pair_rows   which rows are pairs of a split, as columns; their captions
    loader      batches out of features and captions
    embeddings  vectors of pictures and captions, in and out of numpy
    captioned_rows  which pictures are captioned
    candidates  the web's captions and those that a model wrote, cleaned and scored
    selection   which of them are chosen
    selected    what became of the captions, counted
    caption_table   captions and their scores as one table, for other tools
    diversity   how many words, word pairs and texts of captions are different ones

and what they all stand on:

    errors, storage, accounting, uids, schemas
    shard       one Arrow file and the record that commits it
    shard_cache local copies of shards that lie on an object store
    lineage     what a dataset was made from
    tombstones  pictures taken down
    takedown    what is to be taken down, and where it is
    erasure     what datasets hold of it, removed
    manifest    dataset.json
    dataset     a whole dataset, opened for reading; several side by side
    draft       a dataset while a job fills it
    claim       one job at a time writes into a folder: a lock, or on an object store a lease
    verify      every byte against every record
"""
