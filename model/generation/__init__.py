"""Text out of pictures: captions and answers.

settings    how they are written, by either stage
stage1      captions out of stage 1's caption head, each token read once
stage2      captions and answers out of a language model
beams       beam search, whoever gives the scores
nucleus     nucleus sampling
"""
