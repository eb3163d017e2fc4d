"""Events sent to a project's endpoints: endpoints, outbox, deliveries, and HTTP to addresses that users choose."""
