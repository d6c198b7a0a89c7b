"""Messages of split inference: what a trunk sends, and what the head makes of it. No session, nothing is trained."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from adc_edge.defaults import Precision
from adc_edge.wire.message import Count, Id, Message, Positive, Text


class LearnedTrunk(msgspec.Struct, frozen=True, omit_defaults=True):
    """The state of a trunk that has trained: the steps of its session."""

    session: Id
    step: Count
    frozen: bool = False  # it is the bundle's at every step, and only the head has learned
    final: bool = False  # it is the same at every later step; 0.13 does not know it, and wants a head of that step


class Infer(Message, frozen=True):
    """Sent by the device: what the head is to judge. Body: activations [T, k, D] in ``precision``."""

    transfer: Id
    body_bytes: Count
    clusters: Positive
    kept: Positive
    precision: Precision
    session: Id = 0  # as in the Chunks of its body
    bundle: Text | UnsetType = UNSET  # the first BUNDLE_DIGITS of its digest
    trunk: LearnedTrunk | UnsetType = UNSET  # what the trunk has learned; absent: it is the bundle's


class Logits(Message, frozen=True):
    """The trainer's answer to an Infer. Body: logits float32 [T, C]."""

    transfer: Id
    body_bytes: Count
    clusters: Positive
    classes: Positive
    seconds_cloud: float
    head_step: Count = 0  # steps that the head has learned: a device's whole model must have learned none
    session: Id = 0
