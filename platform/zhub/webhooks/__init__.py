"""Webhooks send events to a project's endpoints: endpoints, outbox, deliveries, and HTTP to addresses of users."""
