"""A worker beside Django, in one process: who is logged in there is known here, and sees their own threads only.

pip install 'dooers-workers-server[cli]' django
python -m examples.django_asgi migrate
python -m examples.django_asgi createsuperuser --username ana --email ana@example.com
uvicorn examples.django_asgi:app              (then log in at http://127.0.0.1:8000, and open /assistant/)
"""

import os
import sys
from http.cookies import SimpleCookie

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.management import execute_from_command_line
from django.http import HttpRequest, HttpResponse
from starlette.applications import Starlette
from starlette.routing import Mount

from dooers import AuthRequest, Identity, WorkerConfig, WorkerServer

ORIGIN = os.environ.get("ORIGIN", "http://127.0.0.1:8000")

# In a project of yours this is settings.py, with DJANGO_SETTINGS_MODULE naming it.
settings.configure(
    SECRET_KEY=os.environ.get("SECRET_KEY", "only while you develop"),
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "django.db"}},
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ],
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    USE_TZ=True,
)
django.setup()

# These look at the settings as they are imported.
from django.contrib.auth import aauthenticate, aget_user, alogin  # noqa: E402
from django.contrib.sessions.backends.db import SessionStore  # noqa: E402
from django.middleware.csrf import get_token  # noqa: E402
from django.urls import path  # noqa: E402

# ---------------------------------------------------------------- Django's side

FORM = """<form method="post"><input type="hidden" name="csrfmiddlewaretoken" value="{}">
<input name="username"><input name="password" type="password"><button>Log in</button></form>"""


async def home(request: HttpRequest) -> HttpResponse:
    if request.method == "POST":
        user = await aauthenticate(
            request, username=request.POST.get("username"), password=request.POST.get("password")
        )
        if user is not None:
            await alogin(request, user)
            return HttpResponse('<a href="/assistant/">Talk to the assistant</a>')
    return HttpResponse(FORM.format(get_token(request)))


urlpatterns = [path("", home)]

# ---------------------------------------------------------------- the worker's side

worker = WorkerServer(
    WorkerConfig(
        database_type="sqlite",
        database_name="django_asgi.db",
        private_threads=True,
        allowed_origins=[ORIGIN],  # a browser sends its cookie along whichever page asks
    )
)


@worker.authenticate
async def logged_in(request: AuthRequest) -> Identity | None:
    """Who the session cookie of Django says it is; what the client says of itself counts for nothing."""
    cookie = SimpleCookie(request.headers.get("cookie", "")).get(settings.SESSION_COOKIE_NAME)
    if cookie is None:
        return None
    asked = HttpRequest()
    asked.session = SessionStore(cookie.value)
    user = await aget_user(asked)
    if not user.is_authenticated:
        return None
    return Identity(
        organization_id="org",
        workspace_id="main",
        user_id=str(user.pk),
        user_name=user.get_full_name() or user.get_username(),
        user_email=user.email,
        user_role="admin" if user.is_staff else "member",
        expires_at=await asked.session.aget_expiry_date(),
    )


@worker.handler
async def agent(identity: Identity) -> str:
    return f"Hello {identity.user_name} ({identity.user_role})."


# ---------------------------------------------------------------- both: Django serves whatever the worker does not

app = Starlette(
    routes=[Mount("/assistant", worker.asgi_app(playground=True)), Mount("/", get_asgi_application())],
    lifespan=worker.lifespan,
)

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
