"""Every column of central that is encrypted with SGM_TOKEN_ENCRYPTION_KEYS."""

from __future__ import annotations

from devices_app.models import Device, Probe
from sites_app.models import AlarmRoute
from sites_app.rotation import SECOND_FACTOR_COLUMN, TOKEN_COLUMN, EncryptedColumn

COLUMNS = (
    TOKEN_COLUMN,
    EncryptedColumn(model=Device, field="password_encrypted", label="device_tag"),
    EncryptedColumn(model=AlarmRoute, field="secret_encrypted", label="name"),
    EncryptedColumn(model=Probe, field="password_encrypted", label="device_tag"),
    SECOND_FACTOR_COLUMN,
)
