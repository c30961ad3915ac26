"""Optional integrations, one module and one extra each, on dooers' public names: `jwt` (with its keys in `jwks`), `redis`."""
