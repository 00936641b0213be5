import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models


class Migration(migrations.Migration):

    # Apart from the copying before: PostgreSQL does not alter a table in the transaction that filled its column.
    dependencies = [
        ('control_app', '0002_device_errors_name_their_device'),
        ('devices_app', '0001_initial'),
        ('sites_app', '0001_initial'),
    ]

    operations = [
        migrations.AlterField(
            model_name='deviceerrorlog',
            name='site',
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='device_error_logs', to='sites_app.site'),
        ),
        migrations.AlterField(
            model_name='deviceerrorlog',
            name='device',
            field=models.ForeignKey(null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='error_logs', to='devices_app.device'),
        ),
        migrations.CreateModel(
            name='NodeEvent',
            fields=[
                ('id', models.BigAutoField(primary_key=True, serialize=False)),
                ('at', models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                ('kind', models.CharField(max_length=32)),
                ('reason', models.CharField(blank=True, default='', max_length=500)),
                ('entry', models.TextField()),
                ('node', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='events', to='sites_app.node')),
            ],
            options={
                'indexes': [models.Index(fields=['node', '-at'], name='node_event_newest')],
            },
        ),
    ]
