"""Optional integrations, one module and one extra each, on dooers' public names only: `jwt` (with its keys in `jwks`)."""
