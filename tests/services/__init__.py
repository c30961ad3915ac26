"""The servers that store tests run against, each started once a session."""
