"""What others trained: models by their names, which stay as they are.

hub                 where a model is that goes by its name
offline             those that come with pip packages, for machines that reach no hub
encoders            vision encoders: pictures in, image tokens out
image_tokens        which of its outputs an encoder's tokens are
augmentation        the crop of a view other than the evaluation's
image_transforms    what is done to pictures, in the words of timm and of transformers
batch_norms         those of a CNN, folded into its convolutions
vision_tower        the vision tower of a BLIP-2 of transformers as such an encoder
language            a language model, decoder-only or encoder-decoder
language_loading    language models by name, each weight accounted for
architectures       the shapes of text models by name, without a weight
load_report         what transformers says as it loads
sentences           embeddings of sentences, for the ridge control
clip                CLIP, a judge of captions
weight_files        the .safetensors files of a folder, and their tensors
digests             by what weights are known again
"""
