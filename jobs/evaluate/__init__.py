"""`viaduct evaluate`: what a trained model is worth, on pictures it was not trained on.

retrieval    `viaduct evaluate`: recall and ITM on a split, beside chance and a control
captions     `viaduct evaluate captions`: CIDEr and BLEU-4 of captions that were written
annotations  `viaduct evaluate annotations`: from an annotation file to recall, at once
held_out     embeddings of a split, numbered through and read shard by shard
ranking      ranks by ITC and scores by ITM, spread over Ray's workers
matching     ITM's accuracy on pairs and random non-pairs
control      a ridge regression on the same features
leaks        held-out pictures that were trained on
table        results as lines for people
"""
