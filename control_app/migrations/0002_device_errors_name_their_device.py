import django.db.models.deletion
from django.db import migrations, models


def of_their_devices(apps, schema_editor):
    device = apps.get_model('devices_app', 'Device').objects.filter(pk=models.OuterRef('device_id'))
    apps.get_model('control_app', 'DeviceErrorLog').objects.update(
        site_id=models.Subquery(device.values('site_id')),
        device_tag=models.Subquery(device.values('device_tag')),
    )


class Migration(migrations.Migration):

    dependencies = [
        ('control_app', '0001_initial'),
        ('devices_app', '0001_initial'),
        ('sites_app', '0001_initial'),
    ]

    operations = [
        migrations.AddField(
            model_name='deviceerrorlog',
            name='device_tag',
            field=models.CharField(default='', max_length=64),
            preserve_default=False,
        ),
        migrations.AddField(
            model_name='deviceerrorlog',
            name='site',
            field=models.ForeignKey(null=True, on_delete=django.db.models.deletion.PROTECT, related_name='device_error_logs', to='sites_app.site'),
        ),
        migrations.RunPython(of_their_devices, migrations.RunPython.noop),
    ]
