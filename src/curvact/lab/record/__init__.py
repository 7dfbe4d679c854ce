"""Evaluations on record: attack a model, write down the outcome image by image, compare."""

from curvact.lab.record.evaluation import evaluate, record_key
from curvact.lab.record.leaderboard import (
    Board,
    boards,
    export_boards,
    export_model_info,
    model_info,
    read_records,
)
from curvact.lab.record.record import EvaluationRecord, RecordKey, model_hash, read_record, write_record

__all__ = [
    "Board",
    "EvaluationRecord",
    "RecordKey",
    "boards",
    "evaluate",
    "export_boards",
    "export_model_info",
    "model_hash",
    "model_info",
    "read_record",
    "read_records",
    "record_key",
    "write_record",
]
