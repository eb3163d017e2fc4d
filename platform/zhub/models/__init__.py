"""The tables. Everything a tenant owns carries ``org_id`` and is fenced by row-level security.

Foreign keys between tenant-owned tables are composite, ``(org_id, x_id)``: foreign-key checks bypass row-level
security, so a single-column key would let one tenant point at another's row. Names are never keys.
"""

from zhub.models.aliases import Alias, AliasMove, AliasProtection, AliasRequest
from zhub.models.audit import AuditEvent
from zhub.models.base import Base, TenantOwned
from zhub.models.catalogue import CardRevision, CatalogueEntry, VersionMetric
from zhub.models.completions import CompletionDataset, CompletionSettings, StoredCompletion
from zhub.models.costs import BudgetNotice, MonthCost, Price
from zhub.models.exports import ExpertExport
from zhub.models.jobs import Agent, Attempt, Job, JobDependency, JobEvent, Leader, QueuePlace
from zhub.models.objects import ObjectReservation
from zhub.models.people import Invitation, ProjectMember, User
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
from zhub.models.sharing import PERMISSIONS, ExpertGrant, SharedUsage
from zhub.models.tenancy import ApiKey, Organization, Project, Quota
from zhub.models.usage import MonthUsage, StoredUsage, TokenUsage, Usage, WorkerUsage
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
    "AuditEvent",
    "Base",
    "BaseModel",
    "BudgetNotice",
    "CardRevision",
    "CatalogueEntry",
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
    "ExpertExport",
    "ExpertGrant",
    "ExpertVersion",
    "Feedback",
    "Invitation",
    "Job",
    "JobDependency",
    "JobEvent",
    "Leader",
    "MonthCost",
    "MonthUsage",
    "ObjectReservation",
    "PERMISSIONS",
    "Organization",
    "Price",
    "Project",
    "ProjectMember",
    "Promotion",
    "QueuePlace",
    "Quota",
    "Release",
    "ReleaseExpert",
    "ReleaseVersion",
    "ShadowTrial",
    "SharedUsage",
    "SigningKey",
    "Schedule",
    "ScheduleTick",
    "StoredCompletion",
    "StoredUsage",
    "TENANT_OWNED",
    "TenantOwned",
    "TokenCount",
    "TokenUsage",
    "Usage",
    "User",
    "VersionMetric",
    "WebhookDelivery",
    "WebhookEndpoint",
    "WorkerUsage",
]

TENANT_OWNED = tuple(
    sorted(str(mapper.local_table) for mapper in Base.registry.mappers if issubclass(mapper.class_, TenantOwned))
)
