"""Everything runs without a service, on SQLite; on PostgreSQL where SGM_TEST_DATABASE_URL names one."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

import structlog
from cryptography.fernet import Fernet

os.environ.setdefault("SGM_DATABASE_URL", os.environ.get("SGM_TEST_DATABASE_URL") or "sqlite:///:memory:")
os.environ.setdefault(
    "SGM_SECRET_KEY", "only for tests, and long enough to keep Django's checks content 0123456789"
)

from smartgrid.settings import *  # noqa: F403 - all of them

if DATABASES["default"]["ENGINE"].endswith("sqlite3"):  # noqa: F405
    # A file, as in production: SQLite in memory locks whole tables between threads.
    _directory = tempfile.mkdtemp(prefix="sgm-test-")
    atexit.register(shutil.rmtree, _directory, ignore_errors=True)
    DATABASES["default"]["TEST"] = {"NAME": f"{_directory}/test.sqlite3"}  # noqa: F405

# A logger that keeps what was configured at its first use is deaf to who listens later (`capture_logs`).
structlog.configure(cache_logger_on_first_use=False)

# No test writes to a Redis that happens to run here; those of the events name one of their own.
SGM_EVENTS_KEPT = 0

SGM_TENANT = "tenant-123"
SGM_ROOT_TOKENS = ["root-token-for-tests-one-0123456789", "root-token-for-tests-two-0123456789"]
SGM_TOKEN_HASH_KEY = "hash key for tests"
SGM_TOKEN_ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
SGM_GIT_VERSION = "v1.2.3"

# Each test client would look for all static files anew. Real web processes have settings of their own.
WHITENOISE_USE_FINDERS = False

# In this process and without a service; tests which need the real one start it.
CELERY_BROKER_URL = "memory://"
CELERY_BROKER_TRANSPORT_OPTIONS = {}

# Counted in Redis; tests of throttles start one and set rates of their own.
SGM_THROTTLE_CLIENT = SGM_THROTTLE_TOKEN = SGM_THROTTLE_ISSUER = SGM_THROTTLE_LOGIN = None
SGM_TOKEN_USE_EVERY_S = 0

# Tests move the clock by days; those of the login set ends, and ask for a second factor, of their own.
SGM_CONSOLE_IDLE_MINUTES = 525_600
SGM_CONSOLE_SESSION_HOURS = 8760
SESSION_COOKIE_AGE = SGM_CONSOLE_SESSION_HOURS * 3600
SGM_CONSOLE_SECOND_FACTOR = "off"

# A hash worth its name takes a quarter of a second for each test user.
PASSWORD_HASHERS = [
    "django.contrib.auth.hashers.MD5PasswordHasher",
    "smartgrid.issuer.ClientSecretHasher",
]
