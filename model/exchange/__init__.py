"""Weights of LAVIS and of transformers as ours, and ours as theirs.

weight_names     ours, LAVIS's and those of transformers, one to one
weight_shapes    what the shapes of weights tell of a Q-Former
foreign_weights  weights of another format under our names, and models of them
lavis            LAVIS's .pth to our names and back
lavis_tower      the vision encoder in such a file
hugging_face     BLIP-2 folders of transformers to our names and back
hugging_face_models  whole models of transformers with our weights
vit_as_tower     a ViT of timm or LAVIS as the vision tower of transformers
kept_beside      what an exported checkpoint has that the other format has not
"""
