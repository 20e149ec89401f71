"""What an audit has found: its parts, as JSON and as one page."""

from starft_hf.report.audit.result import AuditResult, Forgotten, GroupAudit, Measured, Sensitivity


__all__ = ["AuditResult", "Forgotten", "GroupAudit", "Measured", "Sensitivity"]
