"""Tensors: the frozen vision encoders, and what is trained on their output.

    encoders    vision encoders by name, with layer and token choice
    offline     weights that come with a Python package, for machines with no hub

Shapes are written in one legend: B pairs on this rank, P image tokens, C vision width, H and W
a picture's height and width in pixels.
"""
