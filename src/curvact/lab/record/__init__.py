"""Robustness on record: run an attack on a model and data, keep what came out, compare."""

from curvact.lab.record.evaluate import attack_parts, attack_settings, evaluate_model, open_model
from curvact.lab.record.leaderboard import (
    Board,
    boards,
    export_boards,
    export_model_info,
    model_info,
    read_records,
)
from curvact.lab.record.record import EvaluationRecord, model_hash, read_record, write_record

__all__ = [
    "Board",
    "EvaluationRecord",
    "attack_parts",
    "attack_settings",
    "boards",
    "evaluate_model",
    "export_boards",
    "export_model_info",
    "model_hash",
    "model_info",
    "open_model",
    "read_record",
    "read_records",
    "write_record",
]
