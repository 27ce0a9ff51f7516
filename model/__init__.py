"""Tensors: the frozen models, and what is trained between them.

    pretrained  what others trained, by name: vision encoders, language models
    tokenizer   captions as token ids; BERT's, with [DEC]
    vocabulary  its words, learned from captions
    packing     texts without their padding, and the padded view of attention
    precision   what is computed in full precision
    layers      attention, feed-forward net and language head, as in BERT
    masks       who sees whom
    qformer     the Q-Former: each way of looking, in passes over packed rows
    itc, itm, itg    the three objectives as functions of tensors
    objectives  which of them to train by, and when each joins
    stage1      the Q-Former with its heads, and the losses of a batch
    start       what stage 1 starts from: a checkpoint, a BERT, or a size
    bert        a BERT's weights as that start
    stage2      the projection into a language model, and its loss
    language_text    captions and prompts as a language model's tokens
    generation  captions and answers out of both stages
    matching    pictures with texts, paired as ITC and ITM see them
    judging     how well texts fit their pictures: what CapFilt chooses captions by
    reranking   ITM over the best of a search
    optimizer   AdamW's groups, the learning rate of a step
    ranks       tensors across the processes that train together
    device_flags     what the device decides, told to the host later
    checkpoint  weights in a folder, with what they were made from
    checkpoint_models    what a checkpoint has trained
    checkpoint_frozen    the frozen models that it was trained with
    heads       which of its heads were trained, and by what
    costs       what all these compute and hold, counted without a weight
    exchange    weights from LAVIS and transformers, and to them
    ridge       the control: a linear map from pooled tokens to frozen text embeddings

Shapes are written in one legend: B pairs on this rank, G pairs on all ranks, P image tokens, C
vision width, Q query tokens, T text tokens, D Q-Former width, E ITC width, V vocabulary, L
language-model width, H and W a picture's height and width in pixels (in attention, H heads of
width K, S positions; in packed texts, R rows).
"""
