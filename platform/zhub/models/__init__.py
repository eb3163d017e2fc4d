"""The tables. Everything a tenant owns carries ``org_id`` and is fenced by row-level security.

Foreign keys between tenant-owned tables are composite, ``(org_id, x_id)``: foreign-key checks bypass row-level
security, so a single-column key would let one tenant point at another's row. Names are never keys.
"""

from zhub.models.aliases import Alias, AliasMove
from zhub.models.base import Base, TenantOwned
from zhub.models.catalogue import CardRevision, CatalogueEntry, VersionMetric
from zhub.models.completions import CompletionDataset, CompletionSettings, StoredCompletion
from zhub.models.jobs import Agent, Attempt, Job, JobDependency, JobEvent, Leader, QueuePlace
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
from zhub.models.sharing import PERMISSIONS, ExpertGrant, SharedUsage
from zhub.models.tenancy import ApiKey, Organization, Project, Quota
from zhub.models.usage import MonthUsage, TokenUsage, Usage
from zhub.models.webhooks import WebhookDelivery, WebhookEndpoint

__all__ = [
    "Agent",
    "Alias",
    "AliasMove",
    "ApiKey",
    "Attempt",
    "Base",
    "BaseModel",
    "CardRevision",
    "CatalogueEntry",
    "Checkpoint",
    "ClassifiedExpert",
    "CompletionDataset",
    "CompletionSettings",
    "Dataset",
    "DatasetVersion",
    "Evaluation",
    "Expert",
    "ExpertChange",
    "ExpertGrant",
    "ExpertVersion",
    "Feedback",
    "Job",
    "JobDependency",
    "JobEvent",
    "Leader",
    "MonthUsage",
    "PERMISSIONS",
    "Organization",
    "Project",
    "Promotion",
    "QueuePlace",
    "Quota",
    "Release",
    "ReleaseExpert",
    "ReleaseVersion",
    "ShadowTrial",
    "SharedUsage",
    "Schedule",
    "ScheduleTick",
    "StoredCompletion",
    "TENANT_OWNED",
    "TenantOwned",
    "TokenCount",
    "TokenUsage",
    "Usage",
    "VersionMetric",
    "WebhookDelivery",
    "WebhookEndpoint",
]

TENANT_OWNED = tuple(
    sorted(str(mapper.local_table) for mapper in Base.registry.mappers if issubclass(mapper.class_, TenantOwned))
)
