"""Choices and default values that the command line shares with the settings, each written once.

Plain constants: `adc-edge --help` imports this module.
"""

from __future__ import annotations

from typing import Literal

Precision = Literal[
    "fp32", "fp16", "bf16", "int8", "int4", "int3", "int2",
    "pca4", "pca3", "pca2", "pca1.5", "pca1", "pca0.75", "pca0.5", "pca0.375", "pca0.25", "pca0.125", "pca0.0625",
    "dct2", "dct1", "dct0.75", "dct0.5", "dct0.375", "dct0.25", "dct0.125", "dct0.0625",
]  # fmt: skip
Compute = Literal["fp32", "fp16", "int8"]  # what an engine computes in
Provider = Literal["cpu", "cuda", "tensorrt", "xnnpack"]  # of ONNX Runtime
ExportPreset = Literal["private"]  # named ratio and precisions of `export`
FleetPrecision = Literal["fp32", "fp16", "bf16", "int8"]  # of a change of the trunk
FleetMode = Literal["parallel", "averaged", "sequential", "frozen"]  # how the devices' trunks become one
COMMON_MODES = ("averaged", "sequential")  # in which devices send changes of one trunk that they have in common
RobustRule = Literal["none", "trimmed-mean", "median"]  # by which their changes become one
MergePasses = Literal["off", "sum", "each"]  # how waiting steps of several devices go through the head together
Placing = Literal["load", "key", "name"]  # by which a new session gets its rank
EngineName = Literal["onnxruntime", "tensorrt", "torch"]
ShimDevice = Literal["cpu", "cuda"]  # where PyTorch trains the trunk
OptimizerName = Literal["adamw", "adam", "sgd"]
LearningRateSchedule = Literal["constant", "cosine"]

TRAINER_ENDPOINT = "tcp://127.0.0.1:5700"  # where a trainer listens
WAIT_S = 30.0  # how long a device tries to reach it
CHECKPOINT_EVERY = 100
LEARNING_RATE = 1e-4
MOMENTUM = 0.9
DATA = "digits"
DECODING_THREADS = 2
EVALUATION_IMAGES = 1000
MOST_MICRO_BATCHES = 64  # of a step
MAX_IMAGES = 1024  # of one message
STORE_BYTES = 20e9  # of the messages that a trainer keeps of devices that send each image once
AVERAGE_EVERY = 10  # steps of a device between two of its changes of a fleet's trunk
AVERAGE_WAIT_S = 30.0  # how long a round waits for those who have not contributed
ROUND_WAIT_S = 0.02  # how long a rank without a step waits for a message before it joins a round
RANK_TIMEOUT_S = 180.0  # how long a rank may be silent
WEB_ADDRESS = "127.0.0.1:8080"  # of the page of runs
METRICS_BIND = "127.0.0.1"  # where metrics are served
