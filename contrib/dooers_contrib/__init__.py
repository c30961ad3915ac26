"""Optional integrations, one module and one extra each, on dooers' public names only. Empty in this version."""
