"""The Ray cluster that an agent drives: connection, nodes, flavours, names. No jobs."""
