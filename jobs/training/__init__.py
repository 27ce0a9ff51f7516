"""The training of both stages, on Ray Train: ranks, updates, checkpoints, metrics, exact resume.

A stage says what a batch is and what its losses are (`Learner`); everything else is here. All
randomness is a function of seed and step, so a run that goes on from a checkpoint gives the losses
of one that was never stopped.

config       how long to train, and what to keep of it
data         the datasets it reads, and in which order
learner      what a stage brings
group        the processes that train together, started again when one dies
training     a training to run: pickled to each process
run          its folder: begun, gone on with, ended
rank         the life of one process: updates, validations, checkpoints in their order
updates      one update, of one or several micro-batches
guard        updates that were skipped: heard of a step late, named, ended when they do not mend
checkpoints  saved in the background; the last ones and the best are kept
window       means over some steps
metrics      what a training says of itself
step_lines   a file of lines that each belong to a step, cut back on resume
boards       TensorBoard, Weights & Biases
"""

from jobs.training.config import LoopConfig
from jobs.training.data import MicroBatches, TrainingData
from jobs.training.group import RanksConfig, prepare
from jobs.training.learner import Learner, held_out, mine
from jobs.training.run import train
from jobs.training.training import Training

__all__ = [
    "Learner",
    "LoopConfig",
    "MicroBatches",
    "RanksConfig",
    "Training",
    "TrainingData",
    "held_out",
    "mine",
    "prepare",
    "train",
]
