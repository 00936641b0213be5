"""One file for every environment: the environment decides, nothing is production-only.

Every variable stands in `.env.example` with its unit, default and effect.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from django.conf import global_settings

from smartgrid.console.look import LOOK
from smartgrid.env import (
    env_bool,
    env_choice,
    env_database,
    env_int,
    env_json,
    env_json_secret,
    env_list,
    env_rate,
    env_secret,
    env_secrets,
    env_str,
    env_url,
)
from smartgrid.logs import logging_config

BASE_DIR = Path(__file__).resolve().parent.parent

# --- the process ----------------------------------------------------------------------------------------

# Empty is refused at the first use; `checks.py` says so before that.
SECRET_KEY = env_secret("SGM_SECRET_KEY")
DEBUG = env_bool("SGM_DEBUG", default=False)
ALLOWED_HOSTS = env_list("SGM_ALLOWED_HOSTS", default=("127.0.0.1", "localhost"))
CSRF_TRUSTED_ORIGINS = env_list("SGM_CSRF_TRUSTED_ORIGINS")
SGM_GIT_VERSION = env_str("SGM_GIT_VERSION", default="unknown")
# Behind a proxy which ends TLS and sets X-Forwarded-Proto.
SGM_BEHIND_TLS_PROXY = env_bool("SGM_BEHIND_TLS_PROXY", default=False)
if SGM_BEHIND_TLS_PROXY:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SGM_BEHIND_TLS_PROXY

INSTALLED_APPS = [
    # Before Django's console, whose templates it replaces.
    "unfold.apps.BasicAppConfig",
    "unfold.contrib.filters",
    "unfold.contrib.forms",
    "unfold.contrib.import_export",
    "smartgrid.apps.ConsoleConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "smartgrid.apps.IssuerConfig",
    "django_celery_beat",
    "import_export",
    "auditlog",
    "smartgrid.apps.SmartgridConfig",
    "sites_app",
    "devices_app",
    "schedules_app",
    "control_app",
]

MIDDLEWARE = [
    "smartgrid.middleware.RequestIdMiddleware",
    "smartgrid.bodies.BodyLimitMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django.middleware.common.CommonMiddleware",
    # Requests of the API get no further: what follows is the console's.
    "smartgrid.middleware.ApiMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    # Says who changed a row, in the audit log.
    "auditlog.middleware.AuditlogMiddleware",
    # How long a login lasts, and the second factor; after all that knows who asks.
    "smartgrid.console.sessions.ConsoleMiddleware",
]

ROOT_URLCONF = "smartgrid.urls"
WSGI_APPLICATION = "smartgrid.wsgi.application"
ASGI_APPLICATION = "smartgrid.asgi.application"
# The guide's paths have no trailing slash, and a redirect would lose a PUT's body.
APPEND_SLASH = False

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

LANGUAGE_CODE = "en-gb"
USE_I18N = False
USE_TZ = True
TIME_ZONE = "UTC"
# As logs and the API write them; lists of the console say the zone, pages of sites have both.
DATE_FORMAT = "Y-m-d"
DATETIME_FORMAT = "Y-m-d H:i:s e"

STATIC_URL = "/static/"
# Served from the packages themselves: nothing to collect, hence nothing to forget.
WHITENOISE_USE_FINDERS = True
WHITENOISE_AUTOREFRESH = False

UNFOLD = LOOK
CSRF_FAILURE_VIEW = "smartgrid.console.trouble.csrf_failure"

# --- who comes into the console ---------------------------------------------------------------------------

# Minutes without a click, and hours after the login, until somebody has to log in anew.
SGM_CONSOLE_IDLE_MINUTES = env_int("SGM_CONSOLE_IDLE_MINUTES", default=60, minimum=1, maximum=10_080)
SGM_CONSOLE_SESSION_HOURS = env_int("SGM_CONSOLE_SESSION_HOURS", default=12, minimum=1, maximum=720)
SESSION_COOKIE_AGE = SGM_CONSOLE_SESSION_HOURS * 3600
SGM_CONSOLE_SECOND_FACTOR = env_choice(
    "SGM_CONSOLE_SECOND_FACTOR", default="required", choices=("required", "optional", "off")
)
# An OpenID provider that people log in by; empty: by password only (`smartgrid.console.oidc`).
SGM_CONSOLE_OIDC = env_json_secret("SGM_CONSOLE_OIDC", default={})
AUTHENTICATION_BACKENDS = ["django.contrib.auth.backends.ModelBackend"]
if SGM_CONSOLE_OIDC:
    AUTHENTICATION_BACKENDS.append("smartgrid.console.oidc.ProviderBackend")
LOGIN_URL = "/admin/login/"
LOGIN_REDIRECT_URL = "/admin/"

# --- database -------------------------------------------------------------------------------------------

DATABASES = {"default": env_database("SGM_DATABASE_URL", default=f"sqlite:///{BASE_DIR}/var/sgm.sqlite3")}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]

# --- Redis and Celery -----------------------------------------------------------------------------------

SGM_REDIS_URL, _host, _port = env_url(
    "SGM_REDIS_URL", default="redis://127.0.0.1:6379/0", schemes=("redis", "rediss"), default_port=6379
)

CELERY_BROKER_URL = SGM_REDIS_URL
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_TRANSPORT_OPTIONS = {
    # A request has eight seconds in all: a Redis that is down, or up and silent, is told within one.
    "socket_connect_timeout": 0.5,
    "socket_timeout": 0.8,
    "max_retries": 0,
}
CELERY_TASK_PUBLISH_RETRY = False
# Answers reach the waiting view through a Redis list of ours.
CELERY_RESULT_BACKEND = None
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TIMEZONE = "UTC"
CELERY_TASK_ACKS_LATE = False
CELERY_TASK_DEFAULT_QUEUE = "sync"
CELERY_TASK_QUEUES: dict[str, dict[str, str]] = {"control": {}, "sync": {}}
# What somebody waits for within the deadline.
CELERY_TASK_ROUTES = {
    "control_app.tasks.dispatch_command": {"queue": "control"},
    "control_app.tasks.ask_node": {"queue": "control"},
}
CELERY_TASK_CREATE_MISSING_QUEUES = False
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_BEAT_SCHEDULER = "smartgrid.beat:Scheduler"
if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    # Celery closes a thread's database connection after each task. That gives a pooled one back; a SQLite
    # file would be opened anew for each command, which costs more than the command's own query.
    CELERY_DB_REUSE_MAX = 100_000

# Seconds within which a control request is answered. Tokens of nodes outlive it (15 s), so no more than that.
SGM_REQUEST_DEADLINE_S: float = env_int("SGM_REQUEST_DEADLINE_S", default=8, minimum=1, maximum=12)

# Who asks for more nameplate power than this at the console, in kW, types what the request is about.
SGM_CONSOLE_TYPED_CONFIRMATION_KW = env_int("SGM_CONSOLE_TYPED_CONFIRMATION_KW", default=1000, minimum=0)

# --- events ---------------------------------------------------------------------------------------------

# About as many of the newest events are kept for those who come back; 0: none are told.
SGM_EVENTS_KEPT = env_int("SGM_EVENTS_KEPT", default=100_000, minimum=0, maximum=10_000_000)
SGM_EVENTS_LISTENERS = env_int("SGM_EVENTS_LISTENERS", default=5000, minimum=1, maximum=100_000)
SGM_EVENTS_LISTENERS_PER_TOKEN = env_int("SGM_EVENTS_LISTENERS_PER_TOKEN", default=100, minimum=1)
# Where web passes streams on from; empty where a proxy in front sends /v1/events to the process itself.
SGM_EVENTS_URL, SGM_EVENTS_HOST, SGM_EVENTS_PORT = (
    env_url("SGM_EVENTS_URL", default="", schemes=("http",), default_port=80)
    if env_str("SGM_EVENTS_URL")
    else ("", "", 0)
)
SGM_EVENTS_RELAYS = env_int("SGM_EVENTS_RELAYS", default=50, minimum=0, maximum=10_000)

# --- MQTT -----------------------------------------------------------------------------------------------

SGM_MQTT_URL, SGM_MQTT_HOST, SGM_MQTT_PORT = env_url(
    "SGM_MQTT_URL", default="mqtt://127.0.0.1:1883", schemes=("mqtt", "mqtts"), default_port=0
)
SGM_MQTT_TLS = SGM_MQTT_URL.startswith("mqtts:")
SGM_MQTT_PORT = SGM_MQTT_PORT or (8883 if SGM_MQTT_TLS else 1883)
SGM_MQTT_WORKER_USERNAME = env_str("SGM_MQTT_WORKER_USERNAME", default="central-worker")
SGM_MQTT_WORKER_PASSWORD = env_secret("SGM_MQTT_WORKER_PASSWORD")
SGM_MQTT_INBOX_USERNAME = env_str("SGM_MQTT_INBOX_USERNAME", default="central-inbox")
SGM_MQTT_INBOX_PASSWORD = env_secret("SGM_MQTT_INBOX_PASSWORD")
# Where `manage.py ca init` made the authority; what it issued for central is there unless told otherwise.
SGM_CA_DIR = env_str("SGM_CA_DIR")
SGM_CA_PASSWORD = env_secret("SGM_CA_PASSWORD")
SGM_MQTT_TLS_CA = env_str("SGM_MQTT_TLS_CA", default=f"{SGM_CA_DIR}/central-ca.pem" if SGM_CA_DIR else "")
# User -> PEM file with key and certificate.
SGM_MQTT_TLS_CERTIFICATES = {
    SGM_MQTT_WORKER_USERNAME: env_str(
        "SGM_MQTT_TLS_WORKER_CERTIFICATE", default=f"{SGM_CA_DIR}/central-worker.pem" if SGM_CA_DIR else ""
    ),
    SGM_MQTT_INBOX_USERNAME: env_str(
        "SGM_MQTT_TLS_INBOX_CERTIFICATE", default=f"{SGM_CA_DIR}/central-inbox.pem" if SGM_CA_DIR else ""
    ),
}
# Publish and subscribe on connections of their own, for brokers which cannot switch Nagle off.
SGM_MQTT_SPLIT_CONNECTIONS = env_bool("SGM_MQTT_SPLIT_CONNECTIONS", default=False)
# Several inbox processes share the messages; off for brokers that know no shared subscriptions.
# The inbox processes as one reader. A node that knew the name could join, and messages would be lost in it.
SGM_MQTT_INBOX_GROUP = f"inbox-{hashlib.sha256(f'inbox group {SECRET_KEY}'.encode()).hexdigest()[:32]}"
SGM_MQTT_SHARED_SUBSCRIPTIONS = env_bool("SGM_MQTT_SHARED_SUBSCRIPTIONS", default=True)

# --- what is kept, and for how long -----------------------------------------------------------------------

# Nodes hold readings back for up to 7 days without a link; those older than this are dropped as they come.
SGM_TELEMETRY_RETENTION_DAYS = env_int("SGM_TELEMETRY_RETENTION_DAYS", default=14, minimum=1, maximum=3660)
SGM_TELEMETRY_MEANS_RETENTION_DAYS = env_int(
    "SGM_TELEMETRY_MEANS_RETENTION_DAYS", default=1096, minimum=1, maximum=36600
)
# 0: for ever.
SGM_CONTROL_LOG_RETENTION_DAYS = env_int("SGM_CONTROL_LOG_RETENTION_DAYS", default=0, minimum=0)
SGM_DEVICE_ERROR_LOG_RETENTION_DAYS = env_int("SGM_DEVICE_ERROR_LOG_RETENTION_DAYS", default=400, minimum=0)

# Days for which alarms that are over are kept.
SGM_ALARM_HISTORY_DAYS = env_int("SGM_ALARM_HISTORY_DAYS", default=90, minimum=1, maximum=3650)
# As many messages a minute go to one route; what is more is told by a digest.
SGM_ALARM_MESSAGES_PER_MINUTE = env_int("SGM_ALARM_MESSAGES_PER_MINUTE", default=10, minimum=1, maximum=600)
# Whether webhooks may be at private addresses, and without TLS.
SGM_ALARM_WEBHOOKS_PRIVATE = env_bool("SGM_ALARM_WEBHOOKS_PRIVATE", default=False)
# The server that takes notices by e-mail; empty: none, and such routes fail and say so.
EMAIL_HOST = env_str("SGM_EMAIL_HOST")
EMAIL_PORT = env_int("SGM_EMAIL_PORT", default=587, minimum=1, maximum=65535)
EMAIL_HOST_USER = env_str("SGM_EMAIL_USER")
EMAIL_HOST_PASSWORD = env_secret("SGM_EMAIL_PASSWORD")
EMAIL_USE_TLS = env_bool("SGM_EMAIL_STARTTLS", default=True)
EMAIL_USE_SSL = env_bool("SGM_EMAIL_TLS", default=False)
EMAIL_TIMEOUT = 5
DEFAULT_FROM_EMAIL = env_str("SGM_EMAIL_FROM", default="sgm@localhost")
# As people reach the console, https://host; the way from a notice to the alarm. Empty: no way.
SGM_CONSOLE_URL = env_str("SGM_CONSOLE_URL")

# --- identity of nodes ----------------------------------------------------------------------------------

# As nodes reach it, mqtts://host:port; empty where nodes are not enrolled here.
SGM_NODES_MQTT_URL = env_str("SGM_NODES_MQTT_URL")
SGM_ENROL_URL = env_str("SGM_ENROL_URL")
SGM_ENROL_CA_FILE = env_str("SGM_ENROL_CA_FILE")
SGM_NODE_CERTIFICATE_DAYS = env_int("SGM_NODE_CERTIFICATE_DAYS", default=365, minimum=1, maximum=3650)
# A command that makes the broker read its files again.
SGM_BROKER_RELOAD = env_str("SGM_BROKER_RELOAD")

# --- sites and tokens -----------------------------------------------------------------------------------

SGM_TENANT = env_str("SGM_TENANT", default="tenant-123")
# Any number may be valid at once, so that one can be rotated without a gap.
SGM_ROOT_TOKENS = env_secrets("SGM_ROOT_TOKENS")
SGM_TOKEN_HASH_KEY = env_secret("SGM_TOKEN_HASH_KEY")
# By which tokens are found too, while one key takes the place of the other.
SGM_TOKEN_HASH_KEY_OTHER = env_secret("SGM_TOKEN_HASH_KEY_OTHER")
# The first encrypts, all decrypt.
SGM_TOKEN_ENCRYPTION_KEYS = env_secrets("SGM_TOKEN_ENCRYPTION_KEYS")

# Whose bearer tokens are believed: a JSON list of {"issuer", "audience"}, with "jwks_url" or "jwks_file"
# where the issuer does not say of itself where its keys are.
SGM_ISSUERS = env_json("SGM_ISSUERS", default=[])
# The embedded issuer signs with this key; empty switches it off.
SGM_ISSUER_KEY_FILE = env_str("SGM_ISSUER_KEY_FILE")
SGM_ISSUER_URL = env_str("SGM_ISSUER_URL", default="http://127.0.0.1:8000/")
SGM_AUDIENCE = env_str("SGM_AUDIENCE", default="curtailment-api")
OAUTH2_PROVIDER = {
    "ACCESS_TOKEN_EXPIRE_SECONDS": 86400,
    "CLIENT_SECRET_HASHER": "pbkdf2_sha256_client_secret",
    # None of the toolkit's views is mounted; these keep `check --deploy` silent about them.
    "COMPLIANT_BCP_RFC9700_IMPLICIT_GRANT": True,
    "COMPLIANT_BCP_RFC9700_PASSWORD_GRANT": True,
    "COMPLIANT_BCP_RFC9700_PKCE_METHOD": True,
    "COMPLIANT_BCP_RFC9700_ACCESS_TOKEN_TRANSPORT": True,
    "COMPLIANT_BCP_RFC9700_AUTHZ_RESPONSE_ISS": True,
    "COMPLIANT_BCP_RFC9700_TOKEN_STORAGE": True,
    "REFRESH_TOKEN_REUSE_PROTECTION": True,
    "ALLOWED_REDIRECT_URI_SCHEMES": ["https"],
}
PASSWORD_HASHERS = [*global_settings.PASSWORD_HASHERS, "smartgrid.issuer.ClientSecretHasher"]

# --- the API --------------------------------------------------------------------------------------------

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["smartgrid.api.authentication.BearerAndManagementToken"],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_THROTTLE_CLASSES": ["smartgrid.api.throttling.ByClientAndToken"],
    "DEFAULT_RENDERER_CLASSES": ["smartgrid.api.renderers.JsonRenderer"],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "smartgrid.api.renderers.Negotiation",
    # There is one format: `?format=` is a parameter like any other that is not ours.
    "URL_FORMAT_OVERRIDE": None,
    "DEFAULT_PARSER_CLASSES": ["smartgrid.api.parsers.StrictJSONParser"],
    "EXCEPTION_HANDLER": "smartgrid.api.exceptions.exception_handler",
    "UNAUTHENTICATED_USER": None,
    "DEFAULT_SCHEMA_CLASS": "smartgrid.api.description.ApiSchema",
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Smart Grid Manager",
    "DESCRIPTION": (BASE_DIR / "smartgrid" / "api" / "description.md").read_text(encoding="utf-8"),
    "VERSION": "1",
    "OAS_VERSION": "3.1.1",
    # The host it was fetched from.
    "SERVERS": [{"url": "/"}],
    "SCHEMA_PATH_PREFIX": "/v1",
    # In the order of the guide, and what it does not print behind that.
    "TAGS": [
        {
            "name": "Authentication",
            "description": "How to come by a bearer token, where the issuer is built in.",
        },
        {"name": "Management tokens", "description": "Who may see which sites; root only."},
        {"name": "Health and version"},
        {"name": "Sites", "description": "Places with plant; changing them needs a root token."},
        {"name": "Nodes", "description": "The edge computers of sites; changing them needs a root token."},
        {
            "name": "Devices",
            "description": "What is measured and controlled; changing it needs a root token.",
        },
        {
            "name": "Control",
            "description": "Requests for values, which outrank schedules, and why a device is where it is.",
        },
        {"name": "Logs", "description": "What was asked, what came of it, and what went wrong."},
        {"name": "Schedules", "description": "Values by quarter hour of a UTC day."},
        {"name": "Telemetry", "description": "What was measured."},
        {
            "name": "Closed loops",
            "description": "How nodes hold the power at a meter; changing it needs a root token.",
        },
        {"name": "Events", "description": "What happens, as it happens."},
        {
            "name": "Device types",
            "description": "What the software knows of makers' devices, and own profiles.",
        },
    ],
    "PREPROCESSING_HOOKS": ["smartgrid.api.description.only_the_api"],
    "POSTPROCESSING_HOOKS": [
        "drf_spectacular.hooks.postprocess_schema_enums",
        "smartgrid.api.description.complete",
    ],
    # As they stand in `operation`: what must be given comes first.
    "SORT_OPERATION_PARAMETERS": False,
    "ENUM_GENERATE_CHOICE_DESCRIPTION": False,
    "ENUM_NAME_OVERRIDES": {
        "ControlStatus": "control_app.models.Status",
        "DocumentStatus": "sites_app.models.DocumentStatus",
        "DoneStatus": ["success"],
    },
    "ENABLE_DJANGO_DEPLOY_CHECK": False,
}
# Control requests are counted apart from all others, by the same rates. None: as many as come.
SGM_THROTTLE_CLIENT = env_rate("SGM_THROTTLE_CLIENT", default="12000/min")
SGM_THROTTLE_TOKEN = env_rate("SGM_THROTTLE_TOKEN", default="12000/min")
# Of one client, at the embedded issuer's token endpoint.
SGM_THROTTLE_ISSUER = env_rate("SGM_THROTTLE_ISSUER", default="600/min")
# Of one name from one address, at the console's login; ten times that of an address, and of a name.
SGM_THROTTLE_LOGIN = env_rate("SGM_THROTTLE_LOGIN", default="40/h")
# Seconds for which a web process gathers which management tokens were used; 0: that is not kept.
SGM_TOKEN_USE_EVERY_S = 30
# Our bodies are some hundred bytes; a schedule of 96 slots is about two thousand.
DATA_UPLOAD_MAX_MEMORY_SIZE = 1024 * 1024
# The console takes files of schedules, of up to 2 MiB (`schedules_app.exchange`).
SGM_UPLOAD_MAX_BYTES = 4 * 1024 * 1024
# Seconds after which web gives up a statement, or the wait for a lock that another holds; 0: never.
SGM_DATABASE_STATEMENT_TIMEOUT_S = env_int(
    "SGM_DATABASE_STATEMENT_TIMEOUT_S", default=15, minimum=0, maximum=3600
)
SGM_DATABASE_LOCK_TIMEOUT_S = env_int("SGM_DATABASE_LOCK_TIMEOUT_S", default=5, minimum=0, maximum=3600)

LOGGING = logging_config(level=env_str("SGM_LOG_LEVEL", default="INFO").upper())
