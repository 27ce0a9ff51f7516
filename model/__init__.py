"""Tensors: the frozen models, and what is trained between them.

    pretrained  what others trained, by name: vision encoders, language models
    tokenizer   captions as token ids; BERT's, with [DEC]
    vocabulary  its words, learned from captions
    qformer     the Q-Former: each way of looking, in passes over packed rows
    masks       who sees whom
    packing     texts without their padding, and the padded view of attention
    layers      attention, feed-forward net and language head, as in BERT
    itc, itm, itg    the three objectives as functions of tensors
    stage1      the Q-Former with its heads, and the three losses of a batch
    start       what stage 1 starts from: a BERT, or a size
    language_text  captions and prompts as their tokens: what is read, what is learned
    stage2      the projection into a language model
    generation  captions and answers out of both stages
    ridge       the control: a linear map from pooled tokens to frozen text embeddings
    optimizer   AdamW's groups, the learning rate of a step
    memory      how a CPU's memory is kept between steps
    ranks       tensors across the processes that train together
    checkpoint  weights in and out, with what they were made from

and the exchange with LAVIS and transformers:

    weight_names      ours, LAVIS's and those of transformers, one to one
    foreign_weights   what weights under other names tell, and models of them
    lavis             LAVIS's .pth to our names and back
    hugging_face      BLIP-2 folders of transformers to our names and back
    vit_as_tower      a ViT of timm or LAVIS as such a tower
    kept_beside       what an exported checkpoint has that the other format has not

Shapes are written in one legend: B pairs on this rank, G pairs on all ranks, P image tokens, C
vision width, Q query tokens, T text tokens, D Q-Former width, E ITC width, V vocabulary, L
language-model width, H and W a picture's height and width in pixels (in attention, H heads of
width K, S positions; in packed texts, R rows).
"""
