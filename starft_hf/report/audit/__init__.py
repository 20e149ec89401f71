"""What an audit has found: its parts, as JSON and as one page."""

from starft_hf.report.audit.result import (
    AuditResult,
    ExplainedMistake,
    Forgotten,
    GroupAudit,
    Measured,
    SaliencyMap,
    Sensitivity,
)


__all__ = [
    "AuditResult",
    "ExplainedMistake",
    "Forgotten",
    "GroupAudit",
    "Measured",
    "SaliencyMap",
    "Sensitivity",
]
