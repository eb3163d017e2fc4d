"""The tables. Everything a tenant owns carries ``org_id`` and is fenced by row-level security.

Foreign keys between tenant-owned tables are composite, ``(org_id, x_id)``: foreign-key checks bypass row-level
security, so a single-column key would let one tenant point at another's row. Names are never keys.
"""

from zhub.models.aliases import Alias, AliasMove, AliasProtection, AliasRequest
from zhub.models.base import Base, TenantOwned
from zhub.models.completions import CompletionDataset, CompletionSettings, StoredCompletion
from zhub.models.jobs import Agent, Attempt, Job, JobDependency, JobEvent, Leader, QueuePlace
from zhub.models.provenance import Attestation, Erasure, SigningKey
from zhub.models.registry import (
    BaseModel,
    Checkpoint,
    Dataset,
    DatasetVersion,
    Evaluation,
    Expert,
    ExpertChange,
    ExpertVersion,
    Feedback,
    Promotion,
    TokenCount,
)
from zhub.models.releases import ClassifiedExpert, Release, ReleaseExpert, ReleaseVersion, ShadowTrial
from zhub.models.schedules import Schedule, ScheduleTick
from zhub.models.tenancy import ApiKey, Organization, Project, Quota
from zhub.models.usage import MonthUsage, TokenUsage, Usage
from zhub.models.webhooks import WebhookDelivery, WebhookEndpoint

__all__ = [
    "Agent",
    "Alias",
    "AliasMove",
    "AliasProtection",
    "AliasRequest",
    "ApiKey",
    "Attempt",
    "Attestation",
    "Base",
    "BaseModel",
    "Checkpoint",
    "ClassifiedExpert",
    "CompletionDataset",
    "CompletionSettings",
    "Dataset",
    "DatasetVersion",
    "Erasure",
    "Evaluation",
    "Expert",
    "ExpertChange",
    "ExpertVersion",
    "Feedback",
    "Job",
    "JobDependency",
    "JobEvent",
    "Leader",
    "MonthUsage",
    "Organization",
    "Project",
    "Promotion",
    "QueuePlace",
    "Quota",
    "Release",
    "ReleaseExpert",
    "ReleaseVersion",
    "ShadowTrial",
    "SigningKey",
    "Schedule",
    "ScheduleTick",
    "StoredCompletion",
    "TENANT_OWNED",
    "TenantOwned",
    "TokenCount",
    "TokenUsage",
    "Usage",
    "WebhookDelivery",
    "WebhookEndpoint",
]

TENANT_OWNED = tuple(
    sorted(str(mapper.local_table) for mapper in Base.registry.mappers if issubclass(mapper.class_, TenantOwned))
)
