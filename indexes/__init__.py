"""FAISS: building, searching and storing indexes of embeddings, and recall. numpy in, numpy out.

    exact       inner products that come out the same in any block, library and thread
    maxsim      exact search where a picture is Q vectors, grouped by picture
    storage     an index as a folder; index.json, published last
    building    an index from image and text embeddings and the pairs beside them
    retrieval   an index opened for search
    ranking     where right items rank among all, block by block, and which items rank first
    recall      recall at k and median rank between pictures and captions; chance
    intervals   95% intervals, bootstrapped over pictures

Shapes are written in one legend: N pictures, M captions, Q vectors a picture, A vectors an item of
an index (Q for pictures, 1 for captions), E values a vector. All vectors are L2-normalised.
"""

import logging

logging.getLogger("faiss.loader").setLevel(logging.WARNING)  # else seven lines at every start
