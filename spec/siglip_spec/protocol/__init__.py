"""The protocol by which a program in any language is a subject (`spec/PROTOCOL.md`).

A case is a JSON object and arrays in a safetensors file; so is its reply. They travel as files
(`files`), or line by line to a running program (`live`), of which `serve` is the Python one.
"""

from siglip_spec.protocol.files import ResponseSubject, export_prompt, read_response
from siglip_spec.protocol.live import LiveSubject
from siglip_spec.protocol.serve import protocol_output, serve

__all__ = [
    "LiveSubject",
    "ResponseSubject",
    "export_prompt",
    "protocol_output",
    "read_response",
    "serve",
]
