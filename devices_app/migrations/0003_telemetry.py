import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models

# Table -> the column by which PostgreSQL partitions it. The partitions themselves are made ahead by beat, and by
# whoever is about to insert into one that is not there (`devices_app.partitions`).
PARTITIONED = {'TelemetryReading': 'at', 'TelemetryMean': 'start'}


def tables_make(apps, schema_editor):
    quote = schema_editor.quote_name
    for name, column in PARTITIONED.items():
        model = apps.get_model('devices_app', name)
        if schema_editor.connection.vendor == 'postgresql':
            sql, params = schema_editor.table_sql(model)
            schema_editor.execute(f'{sql} PARTITION BY RANGE ({quote(column)})', params or None)
            # Rows come nearly in the order of their times, so block ranges find a quarter hour of all series;
            # a tree of them would cost more than the primary key.
            method = 'USING brin ({}) WITH (pages_per_range = 32)'
        else:
            schema_editor.create_model(model)
            method = '({})'
        table = model._meta.db_table
        schema_editor.execute(
            f'CREATE INDEX {quote(f"{table}_{column}")} ON {quote(table)} {method.format(quote(column))}'
        )


def tables_drop(apps, schema_editor):
    """With all partitions of theirs."""
    for name in PARTITIONED:
        schema_editor.delete_model(apps.get_model('devices_app', name))


def series():
    return models.ForeignKey(
        db_constraint=False,
        db_index=False,
        on_delete=django.db.models.deletion.DO_NOTHING,
        related_name='+',
        to='devices_app.telemetryseries',
    )


class Migration(migrations.Migration):

    dependencies = [
        ('devices_app', '0002_retirement_bounds_owners'),
        ('sites_app', '0002_desired_state'),
    ]

    operations = [
        migrations.CreateModel(
            name='TelemetryQuarter',
            fields=[
                ('start', models.DateTimeField(primary_key=True, serialize=False)),
            ],
        ),
        migrations.CreateModel(
            name='TelemetryClosing',
            fields=[
                ('id', models.PositiveSmallIntegerField(default=1, primary_key=True, serialize=False)),
                ('until', models.DateTimeField()),
            ],
            options={
                'constraints': [models.CheckConstraint(condition=models.Q(('id', 1)), name='telemetry_closing_is_one_row')],
            },
        ),
        migrations.CreateModel(
            name='TelemetrySeries',
            fields=[
                ('id', models.BigAutoField(primary_key=True, serialize=False)),
                ('created_at', models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                ('name', models.CharField(max_length=64)),
                ('key', models.CharField(max_length=64)),
                ('unit', models.CharField(blank=True, default='', max_length=16)),
                ('device', models.ForeignKey(null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='series', to='devices_app.device')),
                ('node', models.ForeignKey(null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='series', to='sites_app.node')),
                ('site', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='series', to='sites_app.site')),
            ],
            options={
                'verbose_name_plural': 'telemetry series',
                'constraints': [
                    models.UniqueConstraint(fields=('device', 'site', 'key', 'unit'), name='telemetry_series_of_device_unique'),
                    models.UniqueConstraint(fields=('node', 'site', 'key', 'unit'), name='telemetry_series_of_node_unique'),
                    models.CheckConstraint(condition=models.Q(('node__isnull', True), ('device__isnull', True), _connector='OR'), name='telemetry_series_of_node_or_device'),
                ],
            },
        ),
        migrations.CreateModel(
            name='TelemetryLate',
            fields=[
                ('id', models.BigAutoField(primary_key=True, serialize=False)),
                ('start', models.DateTimeField()),
                ('series', series()),
            ],
        ),
        migrations.SeparateDatabaseAndState(
            state_operations=[
                migrations.CreateModel(
                    name='TelemetryReading',
                    fields=[
                        ('pk', models.CompositePrimaryKey('series', 'at', blank=True, editable=False, primary_key=True, serialize=False)),
                        ('series', series()),
                        ('at', models.DateTimeField()),
                        ('value', models.FloatField()),
                        ('quality', models.PositiveSmallIntegerField(choices=[(0, 'good'), (1, 'uncertain'), (2, 'bad')], default=0)),
                    ],
                ),
                migrations.CreateModel(
                    name='TelemetryMean',
                    fields=[
                        ('pk', models.CompositePrimaryKey('series', 'start', blank=True, editable=False, primary_key=True, serialize=False)),
                        ('series', series()),
                        ('start', models.DateTimeField()),
                        ('mean', models.FloatField()),
                        ('minimum', models.FloatField()),
                        ('maximum', models.FloatField()),
                        ('count', models.PositiveIntegerField()),
                    ],
                ),
            ],
        ),
        # Of its own, so that the state it sees has the tables.
        migrations.RunPython(tables_make, tables_drop),
    ]
