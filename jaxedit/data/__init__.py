"""Text in, arrays out: the only room that knows strings and tokenizers."""

from jaxedit.data.corpus import read_text, token_blocks
from jaxedit.data.counterfact import rebuild_neighborhood
from jaxedit.data.encode import encode_requests, join_context, request_shape
from jaxedit.data.facts import Fact, validate, validate_all
from jaxedit.data.known import KnownFact, load_known
from jaxedit.data.probes import encode_probes, probe_shape
from jaxedit.data.questions import encode_quizzes
from jaxedit.data.records import dump_jsonl
from jaxedit.data.shapes import ProbeShape, RequestShape, ladder, pad_probes, pad_requests
from jaxedit.data.sources import load_facts
from jaxedit.data.tasks import FewShot, Question, Task, few_shot, load_task, load_tasks
from jaxedit.data.text import encode_text
from jaxedit.data.tokens import lookup_index
from jaxedit.data.trace import encode_trace
from jaxedit.data.world import world_facts, world_text, world_versions

__all__ = [
    "Fact",
    "FewShot",
    "KnownFact",
    "ProbeShape",
    "Question",
    "RequestShape",
    "Task",
    "dump_jsonl",
    "encode_probes",
    "encode_quizzes",
    "encode_requests",
    "encode_text",
    "encode_trace",
    "few_shot",
    "join_context",
    "ladder",
    "load_facts",
    "load_known",
    "load_task",
    "load_tasks",
    "lookup_index",
    "pad_probes",
    "pad_requests",
    "probe_shape",
    "read_text",
    "rebuild_neighborhood",
    "request_shape",
    "token_blocks",
    "validate",
    "validate_all",
    "world_facts",
    "world_text",
    "world_versions",
]
