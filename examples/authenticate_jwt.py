"""A worker that knows people by their token (a JWT), whatever they say of themselves. Each sees their own threads only.

pip install 'dooers-workers-server[cli,jwt]'
export JWT_SECRET=$(openssl rand -hex 32)
dooers run examples.authenticate_jwt:worker
dooers chat --token $(python -m examples.authenticate_jwt alice)      (in a second terminal, with the same JWT_SECRET)
"""

import os
import sys
import time

import jwt
from dooers_contrib.jwt import JwtAuthenticator

from dooers import Identity, WorkerConfig, WorkerIncoming, WorkerServer

ISSUER, AUDIENCE = "https://id.example.com/", "my-worker"

worker = WorkerServer(WorkerConfig(database_type="sqlite", database_name="authenticate_jwt.db", private_threads=True))
worker.authenticate(
    JwtAuthenticator(
        issuer=ISSUER,
        audience=AUDIENCE,
        # An issuer of its own signs with a key that it alone has, and publishes the other half. Then, instead of these two:
        #   jwks_url="https://id.example.com/.well-known/jwks.json", algorithms=["RS256"]
        key=os.environ["JWT_SECRET"],
        algorithms=["HS256"],
        claims={"organization_id": "org", "user_role": "roles.0"},
        workspaces="workspaces",  # the token lists several, the client says which
    )
)


@worker.handler
async def who(incoming: WorkerIncoming, identity: Identity) -> str:
    return f"{identity.user_name} ({identity.user_role}) of {identity.organization_id} said: {incoming.message}"


def token(user_id: str) -> str:
    """What the issuer does, once it knows who somebody is."""
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "exp": int(time.time()) + 3600,
        "sub": user_id,
        "name": user_id.title(),
        "org": "acme",
        "workspaces": ["local", "sales"],
        "roles": ["member"],
    }
    return jwt.encode(claims, os.environ["JWT_SECRET"], "HS256")


if __name__ == "__main__":
    print(token(sys.argv[1]))
